"""Server-sent events on their way through: split into whole events, read for usage, otherwise left alone.

The wire format is WHATWG's (an event ends with an empty line); the payloads are those of OpenAI's and
vLLM's chunk objects. Nothing that is only forwarded is decoded.
"""

import re
from typing import Any

import msgspec

from metering.types import Usage

DONE = b"data: [DONE]\n\n"
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_LONGEST_END = 4
# The space after the colon may be missing (WHATWG, server-sent events, 9.2.6).
_DONE = re.compile(rb"data: ?\[DONE\]")
_ERROR = re.compile(rb'data: ?\{\s*"(?:error"|object":\s*"error")')
# A quote inside a JSON string is escaped, so these bytes can only be structure, never text of a model.
_USAGE = re.compile(rb',\s*"usage":\s*(null|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_CHOICE = re.compile(rb'"choices":\s*\[(?:\]|\{"index":\s*(\d+))')
_MAX_EVENT = 16 * 1024 * 1024
# How vLLM writes them: what begins like this and holds none of the others is an event with text.
_TEXT = b'data: {"id":'
_CLOSING = b'"choices":[]'
_DONE_LINE = b"data: [DONE]"
_USAGE_KEY = b',"usage":'
_OBJECT = rb"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}"
_ANY_USAGE = re.compile(rb',"usage":(?:null|' + _OBJECT + rb")")
_OBJECT_USAGE = re.compile(rb',"usage":' + _OBJECT)
_NULL_USAGE = re.compile(rb',"usage":null')
# By whether the client wants the closing usage, and that of every chunk.
_LEFT_OUT = {
    (False, False): _ANY_USAGE,
    (True, False): _OBJECT_USAGE,
    (False, True): _NULL_USAGE,
    (True, True): None,
}


class EventTooLarge(Exception):
    """The engine sent an event that has no end."""


class EventSplitter:
    """Cuts a byte stream into whole events, each with the empty line that ends it."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are complete now. Raises `EventTooLarge` past 16 MiB without an end."""
        rest = self._rest
        unseen = max(0, len(rest) - _LONGEST_END + 1)
        rest += data
        events = []
        start = 0
        for end in _EVENT_END.finditer(rest, unseen):
            events.append(bytes(rest[start : end.end()]))
            start = end.end()
        del rest[:start]
        if len(rest) > _MAX_EVENT:
            raise EventTooLarge
        return events


class StreamTap:
    """Reads the usage that a stream reports on its way, and takes it out where the client did not ask.

    With ``include_usage`` the closing usage chunk stays, with ``continuous`` the usage of every chunk does.
    After the end, ``done`` says that the engine finished by itself, ``error`` holds its error object if it
    sent one. ``final`` is the usage of the closing chunk, for all choices together.
    """

    def __init__(self, *, include_usage: bool, continuous: bool) -> None:
        self._include_usage = include_usage
        self._continuous = continuous
        self._output_by_choice: dict[int, int] = {}
        self._input = 0
        self.final: Usage | None = None
        self.done = False
        self.error: dict[str, Any] | None = None

    @property
    def seen(self) -> Usage:
        """The tokens reported so far, the output summed over the choices."""
        return self.final or Usage(
            input_tokens=self._input, output_tokens=sum(self._output_by_choice.values())
        )

    def pass_on(self, event: bytes) -> bytes:
        """What of the event goes to the client; nothing of an error or of the closing ``[DONE]``."""
        if _DONE.match(event):
            self.done = True
            return b""
        if _ERROR.match(event):
            self.error = _error_of(event)
            return b""
        found = _USAGE.search(event)
        if found is None:
            return event
        return self._with_usage(event, found)

    def _with_usage(self, event: bytes, found: re.Match[bytes]) -> bytes:
        without = event[: found.start()] + event[found.end() :]
        choice = _CHOICE.search(event)
        closing = choice is not None and choice[1] is None
        if found[1] == b"null":
            return event if self._include_usage else without
        usage = usage_of(msgspec.json.decode(found[1]))
        if closing:
            self.final = usage
            return event if self._include_usage else b""
        self.note(int(choice[1]) if choice is not None else 0, usage)
        return event if self._continuous else without

    def note(self, choice: int, usage: Usage) -> None:
        """So many tokens have come of the choice by now."""
        self._output_by_choice[choice] = usage.output_tokens
        self._input = max(self._input, usage.input_tokens)


class StreamFilter:
    """An engine's stream on its way to the client: `feed` takes bytes as they come, and gives what goes on.

    Whole events only. Those of vLLM with text are dealt with together, without looking at each; for all else,
    and where a stream is of ``several`` choices, a `StreamTap` looks at one event after the other.
    """

    def __init__(self, *, include_usage: bool, continuous: bool, several: bool) -> None:
        self.tap = StreamTap(include_usage=include_usage, continuous=continuous)
        self._splitter = EventSplitter()
        self._several = several
        self._rest = b""
        self._one_by_one = False
        self._left_out = _LEFT_OUT[include_usage, continuous]

    def feed(self, data: bytes) -> bytes:
        """What goes to the client now. Raises `EventTooLarge`."""
        if self._one_by_one:
            return self._slowly(data)
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n\n") + 2
        if self._several or b"\r" in data or (end < 2 and len(data) > _MAX_EVENT):
            self._one_by_one = True
            return self._slowly(data)
        self._rest = data[end:] if end >= 2 else data
        return self._whole(data[:end] if self._rest else data) if end >= 2 else b""

    def _whole(self, events: bytes) -> bytes:
        last = events.find(_CLOSING)
        if last < 0:
            last = events.find(_DONE_LINE)
        cut = len(events) if last < 0 else events.rfind(b"data:", 0, last + len(_DONE_LINE))
        text = events[:cut]
        if text.count(_TEXT) != text.count(b"\n\n"):
            return self._slowly(events)
        onward = self._text(text) if text else b""
        if onward is None:
            return self._slowly(events)
        return onward + self._slowly(events[cut:]) if cut < len(events) else onward

    def _text(self, events: bytes) -> bytes | None:
        """Events with text, without usage unless asked for; None where it is not written as expected."""
        stated = events.count(_USAGE_KEY)
        if stated != events.count(_USAGE_KEY[1:]):
            return None
        onward = events
        if self._left_out is not None:
            onward, taken = self._left_out.subn(b"", events)
            if taken != stated and self._left_out is _ANY_USAGE:
                return None
        newest = events.rfind(_USAGE_KEY + b"{")
        if newest < 0:
            return onward
        found = _OBJECT_USAGE.match(events, newest)
        if found is None:
            return None
        self.tap.note(0, usage_of(msgspec.json.decode(found[0][len(_USAGE_KEY) :])))
        return onward

    def _slowly(self, data: bytes) -> bytes:
        tap = self.tap
        return b"".join([tap.pass_on(event) for event in self._splitter.feed(data)])


def usage_of(reported: Any) -> Usage:
    """OpenAI's ``usage`` object as a `Usage`; what is missing counts as 0."""
    if not isinstance(reported, dict):
        return Usage()
    details = reported.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(
        input_tokens=_count(reported.get("prompt_tokens")),
        cached_tokens=_count(cached),
        output_tokens=_count(reported.get("completion_tokens")),
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _error_of(event: bytes) -> dict[str, Any]:
    try:
        payload = msgspec.json.decode(event.removeprefix(b"data:"))
    except msgspec.DecodeError:
        return {}
    error = payload.get("error", payload) if isinstance(payload, dict) else None
    return error if isinstance(error, dict) else {}
