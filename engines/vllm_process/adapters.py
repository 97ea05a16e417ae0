"""The adapters of one engine: loaded, proven, served, unloaded. Runs in the engine's API server process.

vLLM's own routes for this forget a name and leave its weights where they are, in an order of their own. Here
a name in the engine is used once: it carries the digest and a number that no other load in this process has,
which is also vLLM's integer id. What is derived from it (the folder, the slot, the keys of the prefix cache)
can never belong to another load. A request's ``model`` is this name, a slash, and the public one, by which
alone answers call it.
"""

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest

from engines.vllm_process import adapter_canary
from engines.vllm_process.canary_batch import CanaryTurn, FirstBatch, depends_on

_DRAIN_S = 10.0
# No load of the host's has this number.
_REHEARSAL, _REHEARSED = "rehearsal", 1 << 30
_POLL_S = 0.002
_Reply = tuple[int, Any]
_logger = logging.getLogger("vllm.torpor")


class _Served(dict[str, LoRARequest]):
    """vLLM's table of adapters by the ``model`` of a request: ours, by the part before the slash."""

    def __contains__(self, model: object) -> bool:
        """Whether it is served. The answer to a call for a load that is gone is withheld."""
        if not isinstance(model, str):
            return False
        name, of_ours, _ = model.partition("/")
        contained = super().__contains__(name)
        call = depends_on.get()
        if of_ours and not contained and call is not None:
            call.append(CanaryTurn.failed())
        return contained

    def __getitem__(self, model: str) -> LoRARequest:
        name, _, public = model.partition("/")
        lora = super().__getitem__(name)
        # Only `_model_name` reads `base_model_name`.
        return LoRARequest(lora.lora_name, lora.lora_int_id, lora.lora_path, base_model_name=public)


class _Attached:
    """A loaded adapter. ``turn``: of its canary, until that has answered; None where it has none."""

    def __init__(self, lora: LoRARequest) -> None:
        self.lora = lora
        self.turn: CanaryTurn | None = None
        self.proof: asyncio.Task[dict[str, Any]] | None = None
        self.leaving = False


class LoadedAdapters:
    """``app`` is vLLM's application, whose state holds its parts; ``batch`` the way to the engine core."""

    def __init__(self, app: Any, batch: FirstBatch) -> None:
        self._engine = app.state.engine_client
        self._batch = batch
        self._served = _Served()
        self._attached: dict[str, _Attached] = {}
        self._changing = asyncio.Lock()
        models = app.state.openai_serving_models
        models.lora_requests = self._served
        models.model_name = _names(models.model_name)

    async def answer(self, method: str, path: str, body: bytes) -> _Reply:
        """The call below ``/torpor/adapters``: see `engines.vllm_process.control`."""
        name, _, what = path.strip("/").partition("/")
        if method == "POST" and not name:
            return await self._load(**json.loads(body))
        if method == "GET" and not name:
            return 200, {"names": sorted(self._attached), "ids": sorted(await self._engine.list_loras())}
        attached = self._attached.get(name)
        if attached is None:
            return 404, {"error": "unknown adapter"}
        if method == "DELETE" and not what:
            return await self._unload(attached)
        if method == "GET" and what == "proof" and attached.proof is not None:
            return 200, await asyncio.shield(attached.proof)
        if method == "POST" and what == "canary":
            return await self._record(attached)
        return 404, {"error": "unknown path"}

    async def _load(
        self, name: str, number: int, folder: str, canary: dict[str, Any] | None, leaver: str | None
    ) -> _Reply:
        """Answers when it is loaded; its canary goes to the engine with the first request for it."""
        began = time.perf_counter()
        lora = LoRARequest(name, number, folder)
        attached = _Attached(lora)
        with self._batch.expect():
            if leaver in self._attached:
                status, answer = await self._unload(self._attached[leaver])
                if status != 200:
                    return status, answer
            async with self._changing:
                try:
                    await self._engine.add_lora(lora)
                except Exception as error:  # noqa: BLE001 - whatever vLLM has against it
                    return 422, {"error": _told(error, folder)}
            self._attached[name] = attached
            if canary is not None:
                attached.turn = turn = self._batch.turn(name)
                attached.proof = asyncio.create_task(self._prove(attached, turn, canary))
                self._served[name] = lora
        return 200, {"ms": (time.perf_counter() - began) * 1000}

    async def _prove(self, attached: _Attached, turn: CanaryTurn, canary: dict[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        fit, deviation, share = False, 0.0, None
        try:
            fit, deviation, share = await adapter_canary.check(
                self._engine, canary, attached.lora, turn.prefix
            )
        except Exception:
            # The outermost boundary of the proof: without one nothing may be answered.
            _logger.exception("the canary of an adapter could not be asked")
        finally:
            if not fit:
                self._served.pop(attached.lora.lora_name, None)
            turn.close(passed=fit)
        if not fit:
            _logger.error(
                "%s: its canary differs by %.3g, share %s", attached.lora.lora_name, deviation, share
            )
        return {
            "fit": fit,
            "deviation": deviation,
            "share": share,
            "ms": (time.perf_counter() - began) * 1000,
        }

    async def _record(self, attached: _Attached) -> _Reply:
        try:
            return 200, await adapter_canary.record(self._engine, attached.lora)
        except ValueError as error:
            return 422, {"error": str(error)}

    async def _unload(self, attached: _Attached) -> _Reply:
        """Give the adapter to no further request; its weights leave when the last one has ended."""
        name = attached.lora.lora_name
        self._served.pop(name, None)
        if attached.turn is not None:
            attached.turn.open()  # its canary no longer waits for a request
        deadline = time.monotonic() + _DRAIN_S
        while self._in_use(name):
            if time.monotonic() > deadline:
                return 409, {"error": "requests are running"}
            await asyncio.sleep(_POLL_S)  # vLLM offers no event for it
        attached.leaving = True
        async with self._changing:
            # When the core has answered this, it knows of all aborts: they were sent before.
            await self._engine.is_paused()
            await self._engine.remove_lora(attached.lora.lora_int_id)
        if attached.turn is not None and attached.turn.pending:
            attached.turn.close(passed=False)
        self._attached.pop(name, None)
        return 200, None

    def _in_use(self, name: str) -> bool:
        states = self._engine.output_processor.request_states.values()
        return any(state.lora_name == name for state in states)

    async def rehearse(self) -> None:
        """Load an adapter of zeros, ask it once, unload it."""
        folder = Path(os.environ["HOME"]) / _REHEARSAL
        try:
            await self._engine.collective_rpc("torpor_write_adapter", args=(str(folder),))
            await self._load(_REHEARSAL, _REHEARSED, str(folder), None, None)
            attached = self._attached[_REHEARSAL]
            await adapter_canary.ask(self._engine, attached.lora)
            await self._unload(attached)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def attached(self, lora: LoRARequest) -> bool:
        """Whether a request may go to the engine core with it: otherwise its answer is withheld."""
        attached = self._attached.get(lora.lora_name)
        if attached is not None and not attached.leaving:
            return True
        call = depends_on.get()
        if call is not None:
            call.append(CanaryTurn.failed())
        return False

    async def clear(self) -> None:
        """Unload all of them. No request may run."""
        for attached in list(self._attached.values()):
            await self._unload(attached)


def _told(error: Exception, folder: str) -> str:
    """The last line of what the engine core says, without its own words around it, and without the folder."""
    line = str(error).strip().rpartition("\n")[2]
    return line.removeprefix("Call to add_lora method failed: ").replace(folder, "the adapter")


def _names(model_name: Callable[[Any], str]) -> Callable[[Any], str]:
    def told(lora_request: Any = None) -> str:
        if lora_request is None or lora_request.base_model_name is None:
            return model_name(None)
        return str(lora_request.base_model_name)

    return told
