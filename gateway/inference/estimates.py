"""Counts tokens that no engine has reported: with the model's own tokenizer, or four bytes of text a token.

Relayed text is never free. What a server reports of the input and of the output is judged separately, and
either is estimated where it is missing or cannot be true (docs/explanation/metering.md).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from gateway.inference.calls import CompletionCall, Generation
from gateway.inference.catalog import Model
from gateway.inference.reported_usage import ReportedUsage
from gateway.inference.sequences import prompts_of
from gateway.inference.token_counts import count_prompts
from gateway.inference.upstream_json import dumps, loads
from metering.types import Usage

_BYTES_A_TOKEN = 4
_CALLS = ("function", "custom", "function_call")
_TEXTS = ("content", "reasoning", "reasoning_content", "thinking", "refusal", "text", "transcript", "summary")
_NOT_TEXTS = frozenset({"role", "id", "name", "type", "tool_call_id", "signature"})
"""Members of a message that are never generated. Other texts are, whatever a server calls them."""
_LISTS_OF_LOGPROBS = ("content", "refusal", "tokens")
_DEEPEST = 8

_KEPT_CHARACTERS = 1 << 20

_MOST_WORDS_A_TOKEN = 4
MOST_CHARACTERS_A_TOKEN = 32
_SURELY_PLAUSIBLE = 2 * _MOST_WORDS_A_TOKEN
"""So many characters a token hold at most `_MOST_WORDS_A_TOKEN` words: a word has one, and a space."""


class RelayedText:
    """What an engine has generated, without what it is wrapped in, by choice.

    Of an endless answer the beginning is kept; of the rest, ``beyond``, the size in bytes. ``characters``
    counts those that are kept.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, list[str]] = {}
        self._logprobs: dict[int, int] = {}
        self.characters = 0
        self.beyond = 0

    def __bool__(self) -> bool:
        """Whether anything was generated."""
        return bool(self._pieces or self._logprobs or self.beyond)

    def add_events(self, events: bytes) -> None:
        """Whole server-sent events, of which those are left out that are not understood."""
        for line in events.splitlines():
            if line.startswith(b"data:"):
                self.add_answer(line.removeprefix(b"data:"))

    def add_answer(self, body: bytes) -> None:
        """A chunk of an answer, or a whole one."""
        try:
            answer = loads(body)
        except ValueError:
            return
        self.add_choices(answer.get("choices") if isinstance(answer, dict) else None)

    def add_choices(self, choices: Any) -> None:
        """The ``choices`` of a chunk, or of a whole answer."""
        for choice in _objects(choices):
            index = index_of(choice)
            part = choice.get("delta") or choice.get("message")
            if part:
                for text in _texts_of(part):
                    self._add(index, text)
            if "text" in choice:
                for text in _strings(choice["text"]):
                    self._add(index, text)
            logprobs = choice.get("logprobs")
            if logprobs:
                self._logprobs[index] = self._logprobs.get(index, 0) + _number_of_logprobs(logprobs)

    def _add(self, choice: int, text: str) -> None:
        if not text:
            return
        if self.characters + len(text) > _KEPT_CHARACTERS:
            self.beyond += _size(text)
            return
        self.characters += len(text)
        self._pieces.setdefault(choice, []).append(text)

    def texts(self) -> list[str]:
        """One for each choice that has any."""
        return list(self.by_choice().values())

    def by_choice(self) -> dict[int, str]:
        """The texts by the numbers of their choices."""
        return {choice: "".join(pieces) for choice, pieces in self._pieces.items()}

    def logprobs(self) -> int:
        """Tokens whose probability was relayed, of all choices."""
        return sum(self._logprobs.values())

    def guess(self) -> int:
        """Tokens, at four characters each."""
        return _of_size(self.characters + self.beyond)


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _objects(values: Any) -> Sequence[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else ()


def index_of(choice: Any) -> int:
    """The number of a choice; 0 where it has none."""
    index = choice.get("index") if isinstance(choice, dict) else None
    return index if isinstance(index, int) else 0


def _texts_of(part: Any) -> Iterable[str]:
    """The text of a message, or of a delta. Servers may send the same reasoning under several names."""
    texts: list[str] = []
    if not isinstance(part, dict):
        return texts
    for name, value in part.items():
        if not value or name in _NOT_TEXTS:
            continue
        if name == "content" and isinstance(value, str):
            texts.append(value)
        elif name == "tool_calls":
            for call in _objects(value):
                for kind in _CALLS:
                    texts += _arguments(call.get(kind))
        elif name in _CALLS:
            texts += _arguments(value)
        else:
            texts += [text for text in _strings(value) if text not in texts]
    return texts


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    """A text, or the texts of parts: ``[{"type": "text", "text": "..."}]``."""
    if isinstance(value, str):
        yield value
    elif depth < _DEEPEST and isinstance(value, list):
        for part in value:
            yield from _strings(part, depth + 1)
    elif depth < _DEEPEST and isinstance(value, dict):
        for name in _TEXTS:
            yield from _strings(value.get(name), depth + 1)


def _arguments(function: Any) -> Iterator[str]:
    """The name and the arguments of a call, which some servers write as an object."""
    if isinstance(function, dict):
        for value in function.values():
            if value:
                yield value if isinstance(value, str) else dumps(value).decode()


def _number_of_logprobs(logprobs: Any) -> int:
    if not isinstance(logprobs, dict):
        return 0
    lists = (logprobs.get(name) for name in _LISTS_OF_LOGPROBS)
    return sum(len(values) for values in lists if isinstance(values, list))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one request has used, as far body and answer tell. Long texts are best read in a thread."""

    model: Model
    call: Any
    body: Mapping[str, Any]

    def __call__(self, relayed: RelayedText) -> Usage:
        """Both counts estimated."""
        return Usage(self.input_tokens(), 0, self._output_tokens(relayed), estimated=True)

    def input_tokens(self) -> int:
        """Tokens of the prompts."""
        prompt = 0
        if self.model.counter is not None:
            prompt = count_prompts(self.model, self.call, dict(self.body)).total
        return prompt or _of_size(len(_prompt(self.body)))

    def is_plausible(self, reported: ReportedUsage, relayed: RelayedText) -> bool:
        """Whether nothing is to be estimated, as far as can be told without reading the text."""
        if not reported.input_tokens:
            return False
        if not isinstance(self.call, Generation):
            return not reported.output_tokens
        output = reported.output_tokens
        if not output:
            return output == 0 and not relayed
        return relayed.characters + relayed.beyond <= _SURELY_PLAUSIBLE * output

    def judge(self, reported: ReportedUsage, relayed: RelayedText) -> Usage:
        """The usage to settle: what was reported; estimates for what is missing or contradicts the text."""
        usage = reported.usage()
        output, estimated = usage.output_tokens, False
        if not isinstance(self.call, Generation):
            output = 0
        elif reported.output_tokens is None or self._contradicts(output, relayed):
            output, estimated = max(output, self._output_tokens(relayed)), True
        if usage.input_tokens:
            return Usage(usage.input_tokens, usage.cached_tokens, output, estimated)
        return Usage(self.input_tokens(), 0, output, estimated=True)

    def _contradicts(self, output: int, relayed: RelayedText) -> bool:
        """Whether so few tokens cannot hold the text: a tokenizer seldom joins two words, and never many."""
        if self._echoes:
            return not output and bool(self._output_tokens(relayed))
        characters = relayed.characters + relayed.beyond
        if characters <= _SURELY_PLAUSIBLE * output:
            return not output and bool(relayed)
        words = sum(len(text.split()) for text in relayed.texts())
        return words > _MOST_WORDS_A_TOKEN * output or characters > MOST_CHARACTERS_A_TOKEN * output

    @property
    def _echoes(self) -> bool:
        """Whether the prompt is part of every choice's text."""
        return isinstance(self.call, CompletionCall) and bool(self.call.echo)

    def _output_tokens(self, relayed: RelayedText) -> int:
        if not isinstance(self.call, Generation):
            return 0
        counter = self.model.counter
        tokens = _guessed if counter is None else partial(counter.count, add_special_tokens=False)
        beyond = _of_size(relayed.beyond)
        if self._echoes:
            return beyond + sum(self._after_echo(tokens, *item) for item in relayed.by_choice().items())
        return max(beyond + sum(map(tokens, relayed.texts())), relayed.logprobs())

    def _after_echo(self, tokens: Callable[[str], int], choice: int, text: str) -> int:
        prompts = prompts_of(self.call.prompt)
        prompt = prompts[min(choice // (self.call.n or 1), len(prompts) - 1)]
        if isinstance(prompt, str):
            return tokens(text.removeprefix(prompt))
        return max(0, tokens(text) - len(prompt))


def _prompt(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(body.get("messages") or body.get("prompt") or body.get("input"))


def _guessed(text: str) -> int:
    return _of_size(_size(text))


def _of_size(size: int) -> int:
    return -(-size // _BYTES_A_TOKEN)
