"""What the host asks of an engine beside answering requests. Runs in the engine's API server process.

``GET /torpor/requests/{attempt}``
    The attempt's counts (`engines.vllm_process.token_counter`).
``GET /torpor/memory``
    What each worker holds (`engines.vllm_process.worker.WorkerExtension.torpor_memory`).
``POST /torpor/sleep``
    Empties the prefix cache and gives the KV cache's pages back; idle connections are closed. Requests may no
    longer come. Answers ``{"dropped_bytes"}``; 409 when requests still run.
``POST /torpor/offload``, ``POST /torpor/reload``
    vLLM's own sleep mode, for engines on a GPU (``--enable-sleep-mode``).
``POST /torpor/wake``
    After a restore: new seeds for every random number generator (replicas of one image share their state).
    The canary of the body, where there is one, is asked from then on, in one batch with the first requests,
    whose answers are held back until then. The process ends if the canary differs.
``GET /torpor/proof``
    Answers when the canary has: ``{"deviation", "ms"}``.
``POST /torpor/canary``
    Records a canary (`engines.vllm_process.canary.record`). 409 where the engine contradicts itself.
``POST /torpor/adapters``, ``{"name", "number", "folder", "canary", "leaver"}``
    Loads an adapter, to be served under the name once, in the place of the one named ``leaver``. With a
    canary its answers are held back until that has passed; without one it is loaded to record one, and not
    served. 422 when the engine refuses it.
``GET /torpor/adapters``
    ``{"names", "ids"}``: what is loaded, and what vLLM says that it is.
``GET /torpor/adapters/{name}/proof``
    Answers when its canary has: ``{"fit", "deviation", "share", "ms"}``.
``POST /torpor/adapters/{name}/canary``
    Records its canary (`engines.vllm_process.adapter_canary`). 422 where none can be recorded.
``POST /torpor/rehearse``
    Loads an adapter of zeros, asks it, and unloads it: what is slow the first time is done then.
``DELETE /torpor/adapters/{name}``
    Unloads it when its last request has ended; 409 when one does not.
"""

import asyncio
import json
import logging
import os
import random
import sys
import time
from typing import Any, NoReturn

from engines.vllm_process import canary, memory
from engines.vllm_process.adapters import LoadedAdapters
from engines.vllm_process.canary_batch import CanaryTurn, FirstBatch
from engines.vllm_process.token_counter import RequestCounter
from engines.wire import UNFIT, UNPROVEN

PREFIX = "/torpor/"
_COUNTS = "requests/"
_ADAPTERS = "adapters"
_DRAIN_S = 5.0
_Reply = tuple[int, Any]
_logger = logging.getLogger("vllm.torpor")


class Control:
    """Answers the calls below ``/torpor/``. ``app`` is vLLM's application, whose state holds its parts."""

    def __init__(self, counter: RequestCounter) -> None:
        self._counter = counter
        self._proof: asyncio.Task[dict[str, float]] | None = None
        self._turn: CanaryTurn | None = None
        self._batch: FirstBatch | None = None
        self._adapters: LoadedAdapters | None = None

    async def answer(self, app: Any, method: str, path: str, body: bytes) -> _Reply:
        """The status and the JSON value of the answer."""
        what = path.removeprefix(PREFIX)
        if what.startswith(_COUNTS):
            return await self._counts(app, what.removeprefix(_COUNTS))
        if what.startswith(_ADAPTERS):
            return await self._attached(app).answer(method, what.removeprefix(_ADAPTERS), body)
        engine = app.state.engine_client
        if method == "GET" and what == "memory":
            return 200, await engine.collective_rpc("torpor_memory")
        if method == "POST" and what == "sleep":
            return await self._sleep(app, engine)
        if method == "POST" and what == "offload":
            if self._adapters is not None:
                await self._adapters.clear()
            await engine.sleep(level=1)
            return 200, None
        if method == "POST" and what == "reload":
            await engine.wake_up()
            return 200, None
        if method == "POST" and what == "wake":
            await self._wake(engine, json.loads(body) if body else None)
            return 200, None
        if method == "GET" and what == "proof":
            return await self._tell_proof()
        if method == "POST" and what == "rehearse":
            await self._attached(app).rehearse()
            return 200, None
        if method == "POST" and what == "canary":
            return await _record(engine)
        return 404, {"error": "unknown path"}

    def _way_in(self, engine: Any) -> FirstBatch:
        if self._batch is None:
            self._batch = FirstBatch(engine.engine_core, lambda: engine.collective_rpc("torpor_occupy"))
        return self._batch

    def _attached(self, app: Any) -> LoadedAdapters:
        if self._adapters is None:
            self._adapters = LoadedAdapters(app, self._way_in(app.state.engine_client))
        return self._adapters

    @property
    def holds(self) -> bool:
        """Whether a canary has not answered, that of the engine or of an adapter."""
        return self.unproven or (self._batch is not None and self._batch.pending)

    def attached(self, lora: Any) -> bool:
        """Whether a request may go to the engine core with the adapter."""
        return self._adapters is not None and self._adapters.attached(lora)

    async def _counts(self, app: Any, attempt_id: str) -> _Reply:
        aborted = self._counter.aborted(attempt_id)
        if aborted:
            await _catch_up(app.state.engine_client)
            self._counter.forget(aborted)
        counts = self._counter.counts(attempt_id)
        return (404, {"error": "unknown request"}) if counts is None else (200, counts)

    async def _sleep(self, app: Any, engine: Any) -> _Reply:
        if self._adapters is not None:
            await self._adapters.clear()
        deadline = time.monotonic() + _DRAIN_S
        while not await engine.reset_prefix_cache():
            if time.monotonic() > deadline:
                return 409, {"error": "requests are running"}
            await asyncio.sleep(0.01)
        claimed = sum(await engine.collective_rpc("torpor_claimed_blocks"))
        if claimed:
            return 409, {"error": f"the prefix cache was emptied, but claims to hold {claimed} blocks"}
        await engine.reset_mm_cache()
        dropped = await engine.collective_rpc("torpor_drop_kv_cache")
        memory.trim()
        _close_idle(app.state.server)
        return 200, {"dropped_bytes": sum(dropped)}

    async def _wake(self, engine: Any, recorded: dict[str, Any] | None) -> None:
        """Answers at once: what is sent to the engine core from now on comes there after the new seeds."""
        random.seed()
        reseeding = asyncio.create_task(engine.collective_rpc("torpor_wake"))
        await asyncio.sleep(0)
        populating = asyncio.create_task(asyncio.to_thread(memory.populate))
        turn = self._turn = None if recorded is None else self._way_in(engine).turn()
        self._proof = asyncio.create_task(_prove(engine, recorded, turn, reseeding, populating))

    @property
    def unproven(self) -> bool:
        """Whether the engine was restored and its canary has not answered yet."""
        return self._proof is not None and not self._proof.done()

    async def proven(self) -> None:
        """Wait for the canary where the engine was restored: no token may leave before it has answered."""
        if self._proof is not None and not self._proof.done():
            if self._turn is not None:
                self._turn.open()
            await asyncio.wait((self._proof,))

    async def _tell_proof(self) -> _Reply:
        if self._proof is None:
            return 404, {"error": "no canary was asked"}
        return 200, await asyncio.shield(self._proof)


async def _prove(
    engine: Any,
    recorded: dict[str, Any] | None,
    turn: CanaryTurn | None,
    reseeding: "asyncio.Task[list[int]]",
    populating: "asyncio.Task[int]",
) -> dict[str, float]:
    """End this process when the engine does not answer as it did: every answer that waits breaks off."""
    began = time.perf_counter()
    fit, deviation = True, 0.0
    try:
        if recorded is not None and turn is not None:
            fit, deviation = await canary.check(engine, recorded, turn.prefix)
        claimed = sum(await reseeding)
        if claimed:
            _logger.error("the prefix cache claims %d blocks whose memory was given back", claimed)
            _end(UNFIT)
        if fit and turn is not None:
            turn.close(passed=True)
        await populating
    except Exception:
        # The outermost boundary of the proof: without one nothing may be answered.
        _logger.exception("the canary could not be asked")
        _end(UNPROVEN)
    if not fit:
        tolerance = (recorded or {}).get("tolerance", 0.0)
        _logger.error("the canary differs by %.3g, at most %.3g is sound", deviation, tolerance)
        _end(UNFIT)
    return {"deviation": deviation, "ms": (time.perf_counter() - began) * 1000}


async def _record(engine: Any) -> _Reply:
    try:
        return 200, await canary.record(engine)
    except RuntimeError as error:
        return 409, {"error": str(error)}


def _end(status: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(status)


def _close_idle(server: Any) -> None:
    """Close the connections on which nothing is being answered: a dump must find none."""
    for connection in list(server.server_state.connections):
        cycle = getattr(connection, "cycle", None)
        if cycle is None or cycle.response_complete:
            connection.transport.close()


async def _catch_up(engine: Any) -> None:
    """Return when every output that the engine core sent before now has been counted.

    The core answers this question after the aborts that were sent before it, on the socket of the outputs:
    what it had generated until it knew of them is in the queue by then.
    """
    await engine.is_paused()
    outputs: asyncio.Queue[Any] = engine.engine_core.outputs_queue
    while not outputs.empty():  # noqa: ASYNC110 (vLLM's own queue and task: there is no event to wait for)
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.001)
