"""Counts tokens where no engine could say: with the model's own tokenizer, or four bytes of text a token."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from gateway.calls import Generation
from gateway.catalog import Model
from gateway.prompt_length import count_prompts
from metering.types import Usage

_BYTES_A_TOKEN = 4
_TEXTS = ("content", "reasoning", "reasoning_content", "refusal", "text")

_KEPT_CHARACTERS = 1 << 20


class RelayedText:
    """What an engine has generated, without what it is wrapped in, by choice.

    Of an endless answer the beginning is kept; of the rest, ``beyond``, the size in bytes.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, list[str]] = {}
        self._kept = 0
        self.beyond = 0

    def add_events(self, events: bytes) -> None:
        """Whole server-sent events, of which those are left out that are not understood."""
        for line in events.splitlines():
            if line.startswith(b"data:"):
                self.add_answer(line.removeprefix(b"data:"))

    def add_answer(self, body: bytes) -> None:
        """A chunk of an answer, or a whole one."""
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        choices = answer.get("choices") if isinstance(answer, dict) else None
        for choice in _objects(choices):
            index = choice.get("index")
            for text in _texts(choice):
                self._add(index if isinstance(index, int) else 0, text)

    def _add(self, choice: int, text: str) -> None:
        if self._kept + len(text) > _KEPT_CHARACTERS:
            self.beyond += _size(text)
            return
        self._kept += len(text)
        self._pieces.setdefault(choice, []).append(text)

    def texts(self) -> list[str]:
        """One for each choice that has any."""
        return [text for pieces in self._pieces.values() if (text := "".join(pieces))]


Estimate = Callable[[RelayedText], Usage]


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _objects(values: Any) -> Iterable[Mapping[str, Any]]:
    return (value for value in values if isinstance(value, dict)) if isinstance(values, list) else ()


def _texts(choice: Mapping[str, Any]) -> Iterable[str]:
    for part in _objects([choice, choice.get("delta"), choice.get("message")]):
        yield from (part[name] for name in _TEXTS if isinstance(part.get(name), str))
        for call in _objects(part.get("tool_calls")):
            for function in _objects([call.get("function")]):
                yield from (value for value in function.values() if isinstance(value, str))


def estimator(model: Model, call: Any, body: Mapping[str, Any]) -> Estimate:
    """Of one request. Long texts take a while, and are best counted in a thread."""

    def estimate(relayed: RelayedText) -> Usage:
        counter, texts = model.counter, relayed.texts()
        tokens = _guessed if counter is None else partial(counter.count, add_special_tokens=False)
        prompt = count_prompts(model, call, dict(body)).total if counter is not None else 0
        return Usage(
            input_tokens=prompt or _of_size(len(_prompt(body))),
            output_tokens=_of_size(relayed.beyond) + sum(map(tokens, texts))
            if isinstance(call, Generation)
            else 0,
            estimated=True,
        )

    return estimate


def _prompt(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(body.get("messages") or body.get("prompt") or body.get("input"))


def _guessed(text: str) -> int:
    return _of_size(_size(text))


def _of_size(size: int) -> int:
    return -(-size // _BYTES_A_TOKEN)
