"""Canaries and the first requests that depend on them, in one batch. Runs in the API server process.

Each step of the engine core reads all weights, so one for the canary and then one for the request would take
twice as long as one for both. They must be in the core's queue before it begins a step: a canary is prepared
at once, waits for the first request just before it would be sent, and they are sent in a row. The canary of a
restored engine goes with the first request of all, that of an adapter with the first one for the adapter.
An idle core begins a step with the first request that it sees: it is kept busy until they are all there.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

_CANARY = "torpor-canary-"
"""How the ids of a canary's requests begin."""
PATIENCE_S = 0.1

depends_on: ContextVar["list[CanaryTurn] | None"] = ContextVar("depends_on", default=None)
"""Of the HTTP call that is being answered: the canaries that its requests went to the engine core with."""


class CanaryTurn:
    """One canary's place before the requests that depend on it, until `close`.

    ``prefix``: how the ids of its requests begin. ``lora``: the adapter's name in the engine; None: all
    requests depend on it.
    """

    def __init__(self, batch: "FirstBatch | None", prefix: str, lora: str | None) -> None:
        self.prefix = prefix
        self.lora = lora
        self._batch = batch
        self._patience_s = PATIENCE_S if batch is None else batch.patience_s
        self._opened = asyncio.Event()
        self._sent = asyncio.Event()
        self._verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @classmethod
    def failed(cls) -> Self:
        """The turn of a canary that has failed."""
        turn = cls(None, "", None)
        turn.close(passed=False)
        return turn

    def open(self) -> None:
        """Nothing more is to be waited for."""
        self._opened.set()

    def close(self, *, passed: bool) -> None:
        """The canary has answered, or will not."""
        if self._batch is not None:
            self._batch.remove(self)
        self._opened.set()
        self._sent.set()
        if not self._verdict.done():
            self._verdict.set_result(passed)

    @property
    def pending(self) -> bool:
        """Whether the canary has not answered."""
        return not self._verdict.done()

    async def passed(self) -> bool:
        """Wait for the canary's verdict."""
        return await asyncio.shield(self._verdict)

    @property
    def waiting(self) -> bool:
        """Whether the canary is not in the core's queue yet."""
        return not self._sent.is_set()

    def concerns(self, request: Any) -> bool:
        """Whether the request's answer depends on the canary."""
        if self.lora is None:
            return True
        lora = getattr(request, "lora_request", None)
        return lora is not None and lora.lora_name == self.lora

    async def join(self) -> None:
        """Wait, as a request that depends on it, until the canary is before it in the core's queue."""
        self._opened.set()
        await self._sent.wait()

    async def take(self) -> None:
        """Wait, as the canary, for a request that depends on it: for a moment, or while one is expected."""
        while not self._opened.is_set():
            try:
                await asyncio.wait_for(self._opened.wait(), self._patience_s)
            except TimeoutError:
                if self._batch is None or not self._batch.expecting:
                    self._opened.set()

    def sent(self) -> None:
        """The canary is in the core's queue."""
        self._sent.set()


class FirstBatch:
    """Stands in the way to the engine core as long as there are turns.

    ``core``: vLLM's client of the engine core, whose ``add_request_async`` sends a request. ``occupy`` keeps
    the core from its next step for a moment. ``patience_s``: how long a canary waits for a request.
    """

    def __init__(
        self, core: Any, occupy: Callable[[], Coroutine[Any, Any, Any]], patience_s: float = PATIENCE_S
    ) -> None:
        self.patience_s = patience_s
        self._core = core
        self._occupy = occupy
        self._occupying: asyncio.Task[Any] | None = None
        self._send = core.add_request_async
        self._turns: list[CanaryTurn] = []
        self._numbers = itertools.count()
        self._expected = 0
        self._expected_until = 0.0

    @property
    def pending(self) -> bool:
        """Whether a canary has not answered yet."""
        return bool(self._turns)

    @property
    def expecting(self) -> bool:
        """Whether a request is certain to come soon."""
        return self._expected > 0 or time.monotonic() < self._expected_until

    @contextmanager
    def expect(self) -> Iterator[None]:
        """A request comes when this is over: canaries wait for it."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            self._expected_until = time.monotonic() + self.patience_s

    def turn(self, lora: str | None = None) -> CanaryTurn:
        """A place for a canary: from now on, what depends on it goes behind it."""
        turn = CanaryTurn(self, f"{_CANARY}{next(self._numbers)}-", lora)
        if not self._turns:
            self._core.add_request_async = self._add
        self._turns.append(turn)
        return turn

    def remove(self, turn: CanaryTurn) -> None:
        """Its canary needs it no more."""
        if turn in self._turns:
            self._turns.remove(turn)
            if not self._turns:
                del self._core.add_request_async

    async def _add(self, request: Any) -> None:
        if request.request_id.startswith(_CANARY):
            await self._add_canary(request)
            return
        turns = [turn for turn in self._turns if turn.concerns(request)]
        call = depends_on.get()
        if call is not None:
            call += turns
        if any(turn.waiting for turn in turns):
            self._occupying = asyncio.create_task(self._occupy())
            await asyncio.sleep(0)  # it has been sent then
        for turn in turns:
            turn.open()
        for turn in turns:
            await turn.join()
        await self._send(request)

    async def _add_canary(self, request: Any) -> None:
        for turn in self._turns:
            if request.request_id.startswith(turn.prefix):
                await turn.take()
                await self._send(request)
                turn.sent()
                return
        await self._send(request)
