"""An engine's answer as a whole: its usage read, and written as the ledger has it; the rest left alone."""

from collections.abc import Iterable
from typing import Any

import msgspec

from engines.errors import EngineBroken
from gateway.inference.reported_usage import (
    ReportedUsage,
    is_openai_form,
    reported_usage,
    take_usage,
    usage_object,
)
from gateway.inference.upstream_json import dumps, is_utf8, loads
from gateway.inference.usage_extractor import error_in
from metering.types import Usage

_USAGE = b'"usage"'
_NULL = msgspec.Raw(b"null")


class PlainAnswer:
    """The body of an answer to a chat, a completion (``generated``) or an embedding call.

    Only the fields that are asked for are decoded. Raises `EngineBroken` for a body that is neither such an
    answer nor an error.
    """

    def __init__(self, body: bytes, *, generated: bool) -> None:
        self._generated = generated
        self._fields, is_standard = _fields(body)
        self._body = body if is_standard else msgspec.json.encode(self._fields)
        self.error = error_in({name: self._value(name) for name in self._places_of_errors()})
        results = "choices" if generated else "data"
        if self.error is None and not bytes(self._fields.get(results, _NULL)).lstrip().startswith(b"["):
            raise EngineBroken(f"the engine's answer has no {results}")

    def _places_of_errors(self) -> Iterable[str]:
        if b'"error"' not in self._body:
            return ()
        return self._fields.keys() - {"data"}

    def _value(self, name: str) -> Any:
        try:
            return loads(bytes(self._fields.get(name, _NULL)))
        except ValueError as error:
            raise EngineBroken(f"the engine's answer cannot be read: {error}") from None

    @property
    def usage(self) -> Any:
        """What is reported as ``usage``, if need be in ``x_groq`` or a choice; None if nothing is."""
        usage = self._value("usage")
        if isinstance(usage, dict) or not self._generated or _USAGE not in self._body:
            return usage
        places = {name: self._value(name) for name in ("x_groq", "choices")}
        return next((value for value in take_usage(places) if isinstance(value, dict)), None)

    @property
    def choices(self) -> Any:
        """The ``choices``."""
        return self._value("choices")

    @property
    def reported(self) -> ReportedUsage:
        """The tokens that `usage` names."""
        return reported_usage(self.usage, generated=self._generated)

    def body(self, usage: Usage) -> bytes:
        """What the client is sent: as it came, but with the usage that was settled."""
        if is_openai_form(self._value("usage"), usage, generated=self._generated):
            return self._body
        reported = usage_object(usage, generated=self._generated)
        return msgspec.json.encode({**self._fields, "usage": msgspec.Raw(dumps(reported))})


def _fields(body: bytes) -> tuple[dict[str, msgspec.Raw], bool]:
    """The fields as JSON, and whether the whole body is standard JSON."""
    if is_utf8(body):
        try:
            return msgspec.json.decode(body, type=dict[str, msgspec.Raw]), True
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    try:
        value = loads(body)
    except ValueError:
        raise EngineBroken("the engine's answer is not JSON") from None
    if isinstance(value, list) and value:
        value = value[0]  # Google's form of an error
    if not isinstance(value, dict):
        raise EngineBroken("the engine's answer is not a JSON object")
    return {name: msgspec.Raw(dumps(field)) for name, field in value.items()}, False
