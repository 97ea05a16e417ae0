"""Exact token counts for each request, kept inside the engine's API server process.

One *attempt* is one HTTP call of the gateway, named by its ``X-Request-Id``. It may hold several prompts (a
list of them) and several sequences for a prompt (``n`` choices). vLLM's own ``usage`` counts a prompt once
however many choices it has, and sums over prompts and choices: so does this. ``cached_tokens`` is summed over
the prompts, each as its first sequence found it, where vLLM's ``usage`` reports that of one prompt only.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict

_CAPACITY = 8192


class Counts(TypedDict):
    """The wire form of an attempt's counts."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    finished: bool


@dataclass(slots=True)
class _Attempt:
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached: dict[str, int | None] = field(default_factory=dict)
    """By prompt: how many of its tokens came from the prefix cache; None until its first report."""
    running: set[str] = field(default_factory=set)
    entered: set[str] = field(default_factory=set)
    """Sequences in the engine core, of an attempt that may not have all of them there at a time."""
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    """Sequences that wait until another one has ended."""
    aborted: set[str] = field(default_factory=set)
    """Aborted sequences whose last tokens may still be on their way from the engine core."""

    def leave(self, sequence_id: str) -> None:
        """A sequence has ended: those that wait may look whether there is room."""
        self.entered.discard(sequence_id)
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)
        self.waiting.clear()

    @property
    def finished(self) -> bool:
        return self.calls == 0 and not self.running


@dataclass(slots=True)
class _Sequence:
    attempt: _Attempt
    prompt_id: str
    copies: int


class RequestCounter:
    """Counts by attempt, the newest ``capacity`` finished ones and all that run. Not thread-safe."""

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._attempts: OrderedDict[str, _Attempt] = OrderedDict()
        self._sequences: dict[str, _Sequence] = {}

    def begin(self, attempt_id: str) -> None:
        """An HTTP call of the attempt has come in."""
        attempt = self._attempts.setdefault(attempt_id, _Attempt())
        attempt.calls += 1
        self._attempts.move_to_end(attempt_id)
        self._evict()

    def end(self, attempt_id: str) -> None:
        """The HTTP call is over, answered or not."""
        attempt = self._attempts.get(attempt_id)
        if attempt is not None:
            attempt.calls -= 1

    async def enter(self, attempt_id: str, sequence_id: str, most: int) -> None:
        """Count a sequence of the attempt in, once fewer than ``most`` are in the engine core."""
        attempt = self._attempts.get(attempt_id)
        if attempt is None:
            return
        while len(attempt.entered) >= most:
            waiter = asyncio.get_running_loop().create_future()
            attempt.waiting.append(waiter)
            await waiter
        attempt.entered.add(sequence_id)

    def admit(
        self, attempt_id: str, sequence_id: str, prompt_id: str, prompt_tokens: int, copies: int = 1
    ) -> None:
        """A sequence of the attempt goes to the engine core. Sequences of one prompt share ``prompt_id``.

        ``copies``: how many choices it is handed out as; each counts.
        """
        attempt = self._attempts.get(attempt_id)
        if attempt is None or sequence_id in self._sequences:
            return
        if prompt_id not in attempt.cached:
            attempt.cached[prompt_id] = None
            attempt.input_tokens += prompt_tokens
        attempt.running.add(sequence_id)
        self._sequences[sequence_id] = _Sequence(attempt, prompt_id, copies)

    def observe(self, sequence_id: str, tokens: int, cached: int | None, finished: bool) -> None:
        """The engine core reports ``tokens`` new ones; ``cached`` comes with a sequence's first report."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return
        attempt = sequence.attempt
        attempt.output_tokens += tokens * sequence.copies
        if cached is not None:
            # A choice that starts later hits what the prompt's first one just computed: take the least.
            already_cached = attempt.cached[sequence.prompt_id]
            attempt.cached[sequence.prompt_id] = (
                cached if already_cached is None else min(already_cached, cached)
            )
        if finished:
            attempt.running.discard(sequence_id)
            attempt.aborted.discard(sequence_id)
            del self._sequences[sequence_id]
            attempt.leave(sequence_id)

    def abort(self, sequence_ids: Iterable[str]) -> None:
        """The sequences have been told to stop. What still arrives of them is counted."""
        for sequence_id in sequence_ids:
            sequence = self._sequences.get(sequence_id)
            if sequence is not None:
                sequence.attempt.running.discard(sequence_id)
                sequence.attempt.aborted.add(sequence_id)
                sequence.attempt.leave(sequence_id)

    def aborted(self, attempt_id: str) -> frozenset[str]:
        """The attempt's sequences of which tokens may still be on their way."""
        attempt = self._attempts.get(attempt_id)
        return frozenset(attempt.aborted) if attempt else frozenset()

    def forget(self, sequence_ids: Iterable[str]) -> None:
        """Nothing more will come of these aborted sequences."""
        for sequence_id in sequence_ids:
            sequence = self._sequences.pop(sequence_id, None)
            if sequence is not None:
                sequence.attempt.aborted.discard(sequence_id)

    def withdraw(self, attempt_id: str) -> None:
        """Nothing of its answer was sent, or will be: it has cost nothing, and may be asked again."""
        attempt = self._attempts.pop(attempt_id, None)
        gone = [key for key, sequence in self._sequences.items() if sequence.attempt is attempt]
        for sequence_id in gone:
            del self._sequences[sequence_id]

    def counts(self, attempt_id: str) -> Counts | None:
        """The counts of the attempt so far; None if it is unknown or forgotten."""
        attempt = self._attempts.get(attempt_id)
        if attempt is None:
            return None
        return Counts(
            input_tokens=attempt.input_tokens,
            cached_tokens=sum(cached or 0 for cached in attempt.cached.values()),
            output_tokens=attempt.output_tokens,
            finished=attempt.finished,
        )

    def _evict(self) -> None:
        """Drop the oldest finished attempts. Running ones stay: the engine bounds their number."""
        excess = len(self._attempts) - self._capacity
        if excess <= 0:
            return
        finished = (key for key, attempt in self._attempts.items() if attempt.finished)
        for attempt_id in [key for key, _ in zip(finished, range(excess), strict=False)]:
            attempt = self._attempts.pop(attempt_id)
            self.forget(tuple(attempt.aborted))
