"""What pydantic, FastAPI and vLLM say of a bad request, in OpenAI's form: one sentence, and a path such as
``messages[0].content``.

A value that fits no branch of a union has an error for each branch. The most useful one is that of a branch
whose discriminator (``role``, ``type``) did fit, or else the one that lies deepest in the body.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_REPORT = re.compile(r"^\d+ validation errors?\b")
_ENTRY = re.compile(r"""'type': '(?P<kind>\w+)', 'loc': (?P<quote>['"])(?P<path>.*?)(?P=quote), 'msg': """
                    r"""(?P<mark>['"])(?P<text>.*?)(?P=mark)(?:, '|\}|$|\.\.\.\[trunc)""")  # fmt: skip
_PLAIN_ENTRY = re.compile(r"^(?P<path>\S+)\n\s+(?P<text>.+?) \[type=(?P<kind>\w+),", re.MULTILINE)
_SUFFIX = re.compile(r"\s*\(parameter=([\w.]+)(?:, value=.*)?\)\s*$", re.DOTALL)
_LEADING_FIELD = re.compile(r"^(?:Invalid value for |Requested )?[`'\"]?([a-z][a-z0-9_]*)[`'\"]?[ =]")
_FLAG = re.compile(r"(?:^|\s|`)--[a-z]")
_REFUSED = "The engine refused the request."
_DISCRIMINATORS = ("role", "type")
# Steps of a path that name a branch of a union or a validator, and no member of the body.
_MARKERS = frozenset(
    {
        "body", "str", "int", "float", "bool", "bytes", "list", "tuple", "dict", "set", "none", "nonetype",
        "union", "tagged-union", "nullable", "default", "chain", "json-or-python", "lax-or-strict",
        "is-instance", "callable", "function-wrap", "function-after", "function-before", "function-plain",
    }
)  # fmt: skip
_MISSING = "missing"


@dataclass(frozen=True, slots=True)
class _Fault:
    """One entry of a report: ``steps`` as they were told, branches included."""

    kind: str
    steps: tuple[str, ...]
    text: str

    @property
    def path(self) -> str:
        members = [step for step in self.steps if not _is_marker(step)]
        return "".join(f"[{step}]" if step.isdecimal() else f".{step}" for step in members).removeprefix(".")

    @property
    def branch(self) -> str:
        return next((step for step in self.steps if _is_marker(step) and step.lower() not in _MARKERS), "")


def described(
    message: str, param: str | None, fields: frozenset[str] = frozenset()
) -> tuple[str, str | None]:
    """The message and the path to show for what an engine said.

    ``fields``: names of fields, one of which the message may begin with.
    """
    if _REPORT.match(message):
        faults = _faults_in(message)
        if faults:
            return _sentence(_most_useful(faults))
    suffix = _SUFFIX.search(message)
    if suffix is not None:
        message, param = message[: suffix.start()], param or suffix[1]
    if param is None and (leading := _LEADING_FIELD.match(message)) and leading[1] in fields:
        param = leading[1]
    message = _without_flags(message.partition("\n")[0].replace("Value error, ", "").strip())
    if param is not None and param.partition(".")[0] == "body":
        param = _Fault("", tuple(param.split(".")), "").path or None
    return message, param


def _without_flags(message: str) -> str:
    """Without the sentences on arguments that an operator could start vLLM with."""
    sentences = [part for part in re.split(r"(?<=[.!]) ", message) if not _FLAG.search(part)]
    return " ".join(sentences) or _REFUSED


def described_details(details: Sequence[Any]) -> tuple[str, str | None] | None:
    """Likewise for the ``detail`` of FastAPI's 422: a list of objects; None if it is not such a list."""
    faults = [
        _Fault(str(entry.get("type", "")), tuple(map(str, entry["loc"])), str(entry.get("msg", "")))
        for entry in details
        if isinstance(entry, Mapping) and isinstance(entry.get("loc"), list)
    ]
    return _sentence(_most_useful(faults)) if faults else None


def _faults_in(report: str) -> list[_Fault]:
    entries = list(_ENTRY.finditer(report)) or list(_PLAIN_ENTRY.finditer(report))
    return [_Fault(entry["kind"], tuple(entry["path"].split(".")), entry["text"]) for entry in entries]


def _is_marker(step: str) -> bool:
    return step.lower() in _MARKERS or step[:1].isupper() or any(mark in step for mark in "[]{}()")


def _most_useful(faults: Sequence[_Fault]) -> _Fault:
    explained = [fault for fault in faults if fault.kind in ("value_error", "assertion_error")]
    if explained:
        return explained[0]
    strangers = {
        fault.branch
        for fault in faults
        if fault.kind == "literal_error" and fault.steps[-1] in _DISCRIMINATORS and fault.branch
    }
    candidates = [fault for fault in faults if not fault.branch or fault.branch not in strangers] or list(
        faults
    )
    return max(candidates, key=lambda fault: fault.path.count(".") + fault.path.count("["))


def _sentence(fault: _Fault) -> tuple[str, str | None]:
    path, text = fault.path, re.sub(r"^(?:Value error|Assertion failed), ", "", fault.text)
    if not path:
        return _ended(text), None
    if fault.kind == _MISSING:
        return f"Missing required parameter: '{path}'.", path
    text = re.sub(r"^Input should", "it should", text)
    what = "type" if fault.kind.endswith(("_type", "_parsing")) else "value"
    return _ended(f"Invalid {what} for '{path}': {text}"), path


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
