"""The chunks of a streamed answer: read for usage, text, ends and errors, and passed on without usage.

The payloads are OpenAI's chunk objects, as vLLM and other servers write them. docs/explanation/metering.md
says where servers put their usage.
"""

from typing import Any

import msgspec

from gateway.inference.estimates import MOST_CHARACTERS_A_TOKEN, RelayedText, index_of
from gateway.inference.reported_usage import (
    NOTHING,
    ReportedUsage,
    is_openai_form,
    reported_usage,
    take_usage,
    usage_object,
)
from gateway.inference.upstream_json import dumps, loads, read
from metering.types import Usage

_DATA = b"data: "
_DONE = b"[DONE]"
ERROR = b"error"
_QUOTED_ERROR = b'"error"'
_USAGE = b'"usage"'
_MESSAGE = (b"", b"message")
_SHORT_TEXT = 16
_LARGEST_FRAME = 600
_HEAD = ("id", "object", "created", "model", "system_fingerprint", "service_tier")


class UsageExtractor:
    """Reads what a stream reports while it is relayed, and removes usage that the client did not request.

    With ``include_usage`` the client gets the usage of the whole answer, once, as `closing` writes it; with
    ``continuous`` that of every chunk stays. ``seen`` holds the tokens reported so far. At the end ``done``
    says that the engine finished by itself; ``error`` holds its error object if it sent one.

    The text of a ``remote`` server, one behind a ``url``, is kept in ``relayed``, to be compared with its
    usage; that of an engine of the gateway's own only while it reports no output.

    It has many attributes because servers report usage, choices and ends in many ways that must be compared.
    """

    def __init__(
        self, relayed: RelayedText, *, include_usage: bool, continuous: bool, remote: bool = False
    ) -> None:
        self.include_usage, self.continuous, self.remote = include_usage, continuous, remote
        self._relayed = relayed
        self._input = self._cached = 0
        self._output_by_choice: dict[int, int] = {}
        self._of_all = NOTHING
        self._begun: set[int] = set()
        self._finished: set[int] = set()
        self._head: dict[str, Any] = {}
        self._weighed = self._frame = 0
        self._closing = b""
        self._closing_usage: Any = None
        self.seen = Usage()
        self.is_curious = True
        """Something is to be learnt of events with text that are passed on without being read."""
        self.done = False
        self.error: dict[str, Any] | None = None

    def reported(self) -> ReportedUsage:
        """What was reported: for all choices together, if it was, else in their chunks."""
        of_all, outputs = self._of_all, self._output_by_choice
        return ReportedUsage(
            of_all.input_tokens or self._input or None,
            of_all.cached_tokens or self._cached,
            of_all.output_tokens or (self._output() if outputs else of_all.output_tokens),
        )

    def _output(self) -> int:
        """vLLM reports each choice by itself, others all of them together: the text tells which."""
        outputs = self._output_by_choice.values()
        if len(outputs) < 2 or not self.remote:
            return sum(outputs)
        guess = self._relayed.guess()
        return min(sum(outputs), max(outputs), key=lambda tokens: abs(tokens - guess))

    def has_finished(self, choices: int) -> bool:
        """Whether so many choices, and all that have begun, have a reason to be over."""
        return len(self._finished) >= choices and self._finished >= self._begun

    def note(self, choice: int, reported: ReportedUsage) -> None:
        """Note how many tokens of the choice have arrived."""
        if reported.output_tokens is not None:
            self._output_by_choice[choice] = reported.output_tokens
        if reported.input_tokens:
            self._input = reported.input_tokens
        if reported.cached_tokens:
            self._cached = reported.cached_tokens
        if self._of_all is NOTHING:
            self.seen = Usage(self._input, min(self._cached, self._input), self._output())

    def passed(self, events: bytes, number: int) -> None:
        """Count events with text that are passed on without being read; note their newest usage."""
        if self._is_to_be_read(events, number):
            self._relayed.add_events(events)
        if self.include_usage and not self._head:
            self._head = _head_of(msgspec.json.decode(events[len(_DATA) : events.index(b"\n")]))
        self.is_curious = self.remote or not self.seen.output_tokens

    def _is_to_be_read(self, events: bytes, number: int) -> bool:
        """Whether the text matters: without usage, or with more of it than a remote server's usage allows.

        That is a token for each event, and so many bytes a token beyond the size of an event without text.
        """
        output = self.seen.output_tokens
        if not self.remote:
            return not output
        tokens, self._weighed = output - self._weighed, output
        text = len(events) - number * self._frame
        if not self._begun:
            self._begun.add(0)
            self._frame = _frame_of(events[: events.index(b"\n\n") + 2])
            text, number = len(events) - number * self._frame, number - bool(self._frame)
        return tokens < number or text > MOST_CHARACTERS_A_TOKEN * tokens

    def take(self, kind: bytes, data: bytes) -> bytes | None:
        """The payload of an event of this type as the client is to see it; None for what is not for it.

        That is the end, an error (or a chunk that is not JSON), usage alone, and whatever is not a chunk.
        """
        if data.strip() == _DONE:
            self.done = True
            return None
        try:
            chunk, is_standard = read(data)
            data = data if is_standard else dumps(chunk)
        except ValueError:
            chunk = None
            if kind in _MESSAGE:
                self.error = {"message": "an event that is not JSON"}
        error = error_in(chunk) if _QUOTED_ERROR in data else None
        if kind == ERROR or error is not None:
            self.error = error or (chunk if isinstance(chunk, dict) else {})
            return None
        return self._take_chunk(chunk, data) if isinstance(chunk, dict) else None

    def take_body(self, body: bytes) -> None:
        """What has no data may be the body of an error, of a server that answers it with 200."""
        if body.startswith((b"{", b"[")) and not self._begun:
            try:
                self.error = error_in(loads(body))
            except ValueError:
                self.error = None

    def _take_chunk(self, chunk: dict[str, Any], data: bytes) -> bytes | None:
        choices = chunk.get("choices")
        choices = choices if isinstance(choices, list) else []
        if not self._head:
            self._head = _head_of(chunk)
        if self.remote or not self.seen.output_tokens:
            self._relayed.add_choices(choices)
        for choice in choices:
            index = index_of(choice)
            if index not in self._begun:
                self._begun.add(index)
            if index not in self._finished and isinstance(choice, dict) and choice.get("finish_reason"):
                self._finished.add(index)
        if _USAGE in data:
            data = self._without_usage(chunk, choices, data)
        if not choices:
            return None
        return data.replace(b"\n", b" ") if b"\n" in data else data

    def _without_usage(self, chunk: dict[str, Any], choices: list[Any], data: bytes) -> bytes:
        """Note the usage, if there is one. What of the chunk stays, as JSON."""
        is_of_all = chunk.get("choices") == []
        values = take_usage(chunk)
        usage = next((value for value in values if isinstance(value, dict)), None)
        if usage is not None:
            reported = reported_usage(usage)
            if choices:
                self.note(index_of(choices[0]), reported)
            else:
                self._note_all(reported)
            self._closing_usage = usage
            self._closing = data.replace(b"\n", b" ") if is_of_all and usage is values[0] else b""
        stays = self.include_usage if values == [None] else self.continuous and usage is not None
        return data if stays or not values else dumps(chunk)

    def _note_all(self, reported: ReportedUsage) -> None:
        before = self._of_all
        self._of_all = ReportedUsage(
            reported.input_tokens or before.input_tokens,
            reported.cached_tokens or before.cached_tokens,
            reported.output_tokens or before.output_tokens or reported.output_tokens,
        )
        self.seen = self.reported().usage()

    def closing(self, usage: Usage, head: dict[str, Any]) -> bytes:
        """The event with the usage of the whole answer, if the client asked for it; else nothing.

        The engine's own where that is in OpenAI's form and says what is settled. ``head``: the fields before
        the choices, for a stream that had no chunk.
        """
        if not self.include_usage:
            return b""
        stays = is_openai_form(self._closing_usage, usage)
        if stays and self._closing:
            return _DATA + self._closing + b"\n\n"
        reported = self._closing_usage if stays else usage_object(usage)
        return _DATA + dumps({**(self._head or head), "choices": [], "usage": reported}) + b"\n\n"


def _frame_of(event: bytes) -> int:
    """The size of an event without its text; 0 where there is too much of either to tell."""
    relayed = RelayedText()
    relayed.add_events(event)
    size = len(event) - relayed.characters
    return size if relayed.characters <= _SHORT_TEXT and size <= _LARGEST_FRAME else 0


def _head_of(chunk: dict[str, Any]) -> dict[str, Any]:
    """The fields that are the same in every chunk; none where they are not known yet (Azure's first one)."""
    return {name: chunk[name] for name in _HEAD if name in chunk} if chunk.get("id") else {}


def error_in(answer: Any) -> dict[str, Any] | None:
    """The error object of an answer or of a chunk, wherever a server puts it; None if it is not one.

    OpenAI's ``{"error": {...}}``, a text instead of the object, vLLM's former ``{"object": "error", ...}``,
    TGI's type beside it, Google's list of one, OpenRouter's error of a choice, Mistral's choice that an error
    has finished, and Groq's in ``x_groq``.
    """
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if not error and answer.get("object") == ERROR.decode():
        error = answer
    if not error:
        error = _error_within(answer)
    if not error:
        return None
    if isinstance(error, dict):
        return error
    return {"message": str(error), **({"type": answer["error_type"]} if "error_type" in answer else {})}


def _error_within(answer: dict[str, Any]) -> Any:
    groq, choices = answer.get("x_groq"), answer.get("choices")
    if isinstance(groq, dict) and groq.get("error"):
        return groq["error"]
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and (
            choice.get("error") or choice.get("finish_reason") == ERROR.decode()
        ):
            return choice.get("error") or "an answer that an error has finished"
    return None
