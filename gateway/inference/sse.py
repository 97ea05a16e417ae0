"""Server-sent events on their way through: split into whole events, read for usage, otherwise left alone.

The wire format is WHATWG's (HTML, 9.2 Server-sent events); `gateway.inference.usage_extractor` reads the
payloads. Of the engines that the gateway runs itself, nothing that is only forwarded is decoded.
"""

import re

import msgspec

from gateway.inference.reported_usage import reported_usage
from gateway.inference.usage_extractor import ERROR, UsageExtractor

DONE = b"data: [DONE]\n\n"
# Atomic: the two bytes of a CRLF are never taken for two ends of lines.
_EVENT_END = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_LONGEST_END = 4
_BOM = b"\xef\xbb\xbf"
_MAX_EVENT = 16 * 1024 * 1024
_DATA = b"data: "
_COMMENT = b":\n\n"
_MOST_COMMENTS = 32
"""Comments that are passed on between two events: some clients give up after 300 lines without data."""
# How vLLM writes them: what begins like this and holds none of the others is an event with text.
_TEXT = b'data: {"id":'
_CLOSING = b'"choices":[]'
_NEXT_TEXT = b"\n\n" + _TEXT
_FINISHED = b'"finish_reason":"'
_NOT_FINISHED = b'"finish_reason":null'
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
    """Cuts a byte stream into whole events, without the empty line that ends each; lines end as they do."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are complete now. Raises `EventTooLarge` past 16 MiB without an end."""
        rest = self._rest
        if rest or b"\r" in data:
            events = self._parts(data)
        else:
            events = data.split(b"\n\n")
            rest += events.pop()
        if len(rest) > _MAX_EVENT:
            raise EventTooLarge
        if events and not self._begun:
            self._begun = True
            events[0] = events[0].removeprefix(_BOM)
        return events

    def _parts(self, data: bytes) -> list[bytes]:
        rest = self._rest
        unseen = max(0, len(rest) - _LONGEST_END + 1)
        rest += data
        events = []
        start = 0
        for end in _EVENT_END.finditer(rest, unseen):
            events.append(bytes(rest[start : end.start()]))
            start = end.end()
        del rest[:start]
        return events

    def end(self) -> list[bytes]:
        """What the stream ended with, if it lacks its empty line: many servers leave that out."""
        rest = self.feed(b"\n\n") if self._rest else []
        self._rest.clear()
        return rest


def read_event(event: bytes) -> tuple[bytes, bytes | None, bool]:
    """The type of an event, its data (None if it has none), and whether it holds a comment.

    ``id`` and ``retry`` are for a client that reconnects, which none of these streams lets it do. llama.cpp
    wrote errors in a field of their own.
    """
    kind, data, comment = b"", [], False
    for line in _LINE_END.split(event):
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value.removeprefix(b" "))
        elif name == b"event":
            kind = value.removeprefix(b" ")
        elif name == ERROR:
            kind, data = ERROR, [value.removeprefix(b" ")]
            break
        elif line and not name:
            comment = True
    return kind, b"\n".join(data) if data else None, comment


def _simple_events(events: bytes) -> int:
    """How many they are, if all are written as vLLM writes text that is not the last, with usage; else 0."""
    number = events.count(b"\n") // 2
    if (
        events.startswith(_TEXT)
        and events.count(_NEXT_TEXT) == number - 1
        and events.count(_NOT_FINISHED) == number
        and events.count(_USAGE_KEY + b"{") == number
        and b'"error"' not in events
    ):
        return number
    return 0


class StreamFilter:
    """An engine's stream on its way to the client: `feed` takes bytes as they come, and gives what goes on.

    Whole events only. Those of vLLM with text are dealt with together, without looking at each; for all else,
    and where a stream is of ``multiple_choices`` choices, a `UsageExtractor` looks at one event after the
    other. For a server that the gateway does not run, that begins with the first event which is not simple.
    """

    def __init__(self, extractor: UsageExtractor, *, multiple_choices: bool) -> None:
        self.extractor = extractor
        self._splitter = EventSplitter()
        self._rest = b""
        self._one_by_one = multiple_choices
        self._left_out = _LEFT_OUT[extractor.include_usage, extractor.continuous]
        self._comments = 0

    def feed(self, data: bytes) -> bytes:
        """What goes to the client now. Raises `EventTooLarge`."""
        if self._one_by_one:
            return self._event_by_event(data)
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n\n") + 2
        if b"\r" in data or (end < 2 and len(data) > _MAX_EVENT):
            self._one_by_one, self._rest = True, b""
            return self._event_by_event(data)
        self._rest = data[end:] if end >= 2 else data
        if end < 2:
            return b""
        events = data[:end] if self._rest else data
        return self._remote(events, data) if self.extractor.remote else self._whole(events)

    def end(self) -> bytes:
        """What goes to the client of a last event without an empty line after it. Raises as `feed` does."""
        rest, self._rest = self._rest, b""
        onward = self._event_by_event(rest) if rest else b""
        return onward + b"".join([self._one(event) for event in self._splitter.end()])

    def _whole(self, events: bytes) -> bytes:
        last = events.find(_CLOSING)
        if last < 0:
            last = events.find(_DONE_LINE)
        cut = len(events) if last < 0 else events.rfind(b"data:", 0, last + len(_DONE_LINE))
        text = events[:cut]
        if text.count(_TEXT) != text.count(b"\n\n"):
            return self._event_by_event(events)
        onward = self._text(text) if text else b""
        if onward is None:
            return self._event_by_event(events)
        return onward + self._event_by_event(events[cut:]) if cut < len(events) else onward

    def _remote(self, events: bytes, data: bytes) -> bytes:
        """The events, which ``data`` begins with; from the first that is not simple on, one by one."""
        number = _simple_events(events)
        onward = self._text(events, number) if number else None
        if onward is not None:
            return onward
        self._one_by_one, self._rest = True, b""
        simple = events[: events.rfind(b"\n\n", 0, max(0, events.find(_FINISHED))) + 2]
        number = _simple_events(simple)
        onward = self._text(simple, number) if number else None
        return (
            self._event_by_event(data)
            if onward is None
            else onward + self._event_by_event(data[len(simple) :])
        )

    def _text(self, events: bytes, number: int = 0) -> bytes | None:
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
        if newest >= 0:
            match = _OBJECT_USAGE.match(events, newest)
            if match is None:
                return None
            self.extractor.note(0, reported_usage(msgspec.json.decode(match[0][len(_USAGE_KEY) :])))
        if self.extractor.is_curious:
            self.extractor.passed(events, number)
        return onward

    def _event_by_event(self, data: bytes) -> bytes:
        onward = b"".join([self._one(event) for event in self._splitter.feed(data)])
        if self.extractor.done or self.extractor.error is not None:
            self._one_by_one = True  # what follows is not passed on
        return onward

    def _one(self, event: bytes) -> bytes:
        """The event as it goes on: the payload alone, in one line."""
        extractor = self.extractor
        if extractor.done or extractor.error is not None:
            return b""
        if event.startswith(_DATA) and b"\n" not in event and b"\r" not in event:
            kind, data, comment = b"", event[len(_DATA) :], False
        else:
            kind, data_or_none, comment = read_event(event)
            data = data_or_none or b""
        if not data.strip():
            extractor.take_body(event)
            return self._comment() if comment else b""
        payload = extractor.take(kind, data)
        if payload is None:
            return b""
        self._comments = 0
        return _DATA + payload + b"\n\n"

    def _comment(self) -> bytes:
        """Comments keep a connection alive; their text is the server's own."""
        self._comments += 1
        return _COMMENT if self._comments <= _MOST_COMMENTS else b""
