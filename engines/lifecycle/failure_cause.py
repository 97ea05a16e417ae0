"""Why an engine ended, from what it wrote: the innermost exception of the traceback that matters.

vLLM's processes each write tracebacks, some of them twice, and the one that comes last usually names another:
"Engine core initialization failed. See root cause above." A chain of exceptions is printed with its origin
first. Where one was raised *from* another, the origin says more; where one was raised *while* another was
handled, the later one is the translation for humans.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

_LONGEST = 600
_MOST_CHAINS = 40
# What was written longer before the end was survived.
_RECENT_S = 30.0
_MOST_MESSAGE_LINES = 8

# "(EngineCore pid=12) ERROR 11-26 00:44:11 [core.py:1510] " or a part of it.
_PREFIX = re.compile(
    r"^(?:\((?P<process>[A-Za-z]\w*)[^)]*\) ?)?(?:(?P<level>[A-Z]+) \d\d-\d\d [\d:]+ \[(?P<tag>[^\]]*)\] ?)?"
)
_TRACEBACK = "Traceback (most recent call last):"
_FROM = "The above exception was the direct cause of the following exception:"
_WHILE = "During handling of the above exception, another exception occurred:"
_FRAME = re.compile(r'^\s+File "(?P<path>[^"]+)", line (?P<line>\d+), in (?P<name>.+)')
_EXCEPTION = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
_USAGE_ERROR = re.compile(r"^\S+: error: (?P<message>.+)")
_NATIVE_ERROR = re.compile(r"^(?:terminate called after throwing.*|Fatal Python error: .*|.*\bBus error\b.*)")
_PACKAGES = "/site-packages/"
# Exceptions that only say that another one, in another process, came before.
_REFERRING = re.compile(
    r"See root cause above|See stack trace \(above\)|EngineDeadError|Engine core proc\S* died|"
    r"KeyboardInterrupt|SystemExit|CancelledError"
)
# pydantic: "1 validation error for ModelConfig", and on the next line what it is.
_VALIDATION = re.compile(r"validation errors? for \w+ (?:.*?(?:Value error|Assertion failed), )?(?P<what>.+)")
_VALIDATION_END = re.compile(r" \[type=\w+, input_value=.*|\s*For further information visit.*")
# What follows these is long, and no help here.
_TAIL = re.compile(
    r"\s*Supported architectures: .*|\s*\(chose from \{.*| You can update Transformers .*"
    r"| To allow overriding this maximum.*"
)

_ADVICE: tuple[tuple[str, str], ...] = (
    (r"KV cache is needed", "raise kv_cache_gib, lower max_model_len, or leave both out"),
    (r"architectures .* are not supported|does not recognize this architecture",
     "this version of vLLM does not know the model's architecture"),
    (r"SafetensorError|deserializing header",
     "a file of weights is damaged or cut short: copy the model again"),
    (r"not initialized from checkpoint|exceeds dimension size|size mismatch|shape mismatch|to load weight",
     "the weights are not those that config.json describes"),
    (r"[Tt]okenizer|tokenization", "check the tokenizer's files in the model's folder"),
    (r"chat.?template", "check the chat template"),
    (r"unrecognized arguments|invalid choice|invalid .* value|expected one argument",
     "check engine_args in the model's table"),
    (r"tool call parser|tool_call_parser", "check the tool parser"),
    (r"greater than the derived max_model_len", "lower max_model_len"),
    (r"can't allocate memory|MemoryError|Cannot allocate memory|std::bad_alloc|requested memory for kv",
     "out of memory: lower kv_cache_gib or max_model_len, or let other engines sleep"),
    (r"No space left on device", "free space on the disk of the data directory"),
)  # fmt: skip


@dataclass(slots=True)
class _Exception:
    """One exception of a chain. ``direct``: the next one of the chain was raised from it."""

    kind: str
    message: str = ""
    location: str = ""
    direct: bool = True

    def text(self) -> str:
        name = self.kind.rpartition(".")[2]
        message = " ".join(self.message.split())
        if match := _VALIDATION.search(message):
            name, message = "", match["what"]
        message = _TAIL.sub("", _VALIDATION_END.sub("", message))[:_LONGEST]
        return ": ".join(part for part in (name, message) if part)


@dataclass(slots=True)
class _Chain:
    """The traceback that a process writes. ``paused``: a blank line came after its last exception."""

    exceptions: list[_Exception] = field(default_factory=list)
    location: str = ""
    message_lines: int = 0
    in_frames: bool = False
    paused: bool = False
    linked: bool = False
    began: float = field(default_factory=time.monotonic)

    def origin(self) -> _Exception:
        """The exception to be told: the innermost one that others were raised from."""
        index = len(self.exceptions) - 1
        while index > 0 and self.exceptions[index - 1].direct:
            index -= 1
        return self.exceptions[index]


class FailureCause:
    """Reads an engine's output line by line; keeps what is needed, within bounds."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], _Chain] = {}
        self._chains: list[_Chain] = []
        self._usage = ""
        self._native = ""

    def feed(self, line: str) -> None:
        """One line, without its end."""
        prefix = _PREFIX.match(line)
        if prefix is None or prefix["level"] in ("INFO", "WARNING", "DEBUG"):
            return
        writer = (prefix["process"] or "", prefix["tag"] or "")
        text = line[prefix.end() :]
        if text.startswith(_TRACEBACK):
            self._begin(writer)
        elif chain := self._open.get(writer):
            self._continue(writer, chain, text)
        elif match := _USAGE_ERROR.match(text):
            self._usage = match["message"][:_LONGEST]
        elif _NATIVE_ERROR.match(text):
            self._native = text[:_LONGEST]

    def text(self) -> str:
        """The cause in a line, with what to do if that is known; empty if nothing tells."""
        cause, location = self._usage or self._native, ""
        if not self._usage:
            origin = next(self._telling(), None)
            if origin is not None:
                cause, location = origin.text(), origin.location
        if not cause:
            return ""
        text = f"{cause} {location}"
        advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, text)), "")
        if advice:
            return f"{cause} ({advice})"
        return f"{cause} (in {location})" if location else cause

    def _telling(self) -> Iterator[_Exception]:
        """Origins, the last one first, without those that refer to another or are old."""
        since = time.monotonic() - _RECENT_S
        for chain in reversed(self._chains):
            if chain.began >= since and chain.exceptions and not _REFERRING.search(chain.origin().text()):
                yield chain.origin()

    def _begin(self, writer: tuple[str, str]) -> None:
        chain = self._open.get(writer)
        if chain is not None and chain.linked:
            chain.linked, chain.in_frames, chain.location = False, True, ""
            return
        chain = self._open[writer] = _Chain(in_frames=True)
        self._chains.append(chain)
        del self._chains[:-_MOST_CHAINS]

    def _continue(self, writer: tuple[str, str], chain: _Chain, text: str) -> None:
        if chain.in_frames:
            if match := _FRAME.match(text):
                path = match["path"].rpartition(_PACKAGES)[2]
                chain.location = (
                    "" if path.startswith("pydantic") else f"{path}:{match['line']}, {match['name']}"
                )
            elif match := (None if text[:1].isspace() else _EXCEPTION.match(text)):
                chain.exceptions.append(_Exception(match["kind"], match["message"] or "", chain.location))
                chain.in_frames, chain.paused, chain.message_lines = False, False, 0
        elif text in (_FROM, _WHILE):
            chain.exceptions[-1].direct = text == _FROM
            chain.linked = True
        elif not text.strip():
            chain.paused = True
        elif chain.paused or chain.linked or chain.message_lines >= _MOST_MESSAGE_LINES:
            del self._open[writer]
        else:
            chain.message_lines += 1
            chain.exceptions[-1].message += f"\n{text[:_LONGEST]}"
