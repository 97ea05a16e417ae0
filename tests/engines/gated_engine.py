"""Engines whose wake and end can be held up: a test decides what happens before they go on."""

import asyncio
from collections.abc import Mapping

from coldstart.snapshots.store import Snapshot
from engines.lifecycle.process import EngineProcess, EngineStartFailed, Runtime
from engines.spec import ModelSpec
from tests.engines.support import standin_argv


class Gate:
    """Makes stand-ins. While ``open`` is not set their wakes wait; with ``failing`` they fail then."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.ends = asyncio.Event()  # while it is not set, no engine comes to its end
        self.ends.set()
        self.passes = 0  # so many go through a closed gate
        self.failing = False
        self.broken_restores = False
        self.created: list[EngineProcess] = []

    def __call__(self, spec: ModelSpec, runtime: Runtime) -> EngineProcess:
        engine = _Gated(spec, runtime, argv=standin_argv, health_timeout_s=0.3)
        engine.gate = self
        self.created.append(engine)
        return engine

    def shut(self, *, passes: int = 0) -> None:
        """No wake comes through before `open` is set, but for so many."""
        self.open.clear()
        self.passes = passes

    async def passed(self) -> None:
        """Wait until a wake may go on."""
        if self.passes and not self.open.is_set():
            self.passes -= 1
            return
        await self.open.wait()
        if self.failing:
            raise EngineStartFailed("the gate is closed")


class _Gated(EngineProcess):
    gate: Gate

    async def start(self) -> Mapping[str, float]:
        await self.gate.passed()
        return await super().start()

    async def restore(self, snapshot: Snapshot) -> Mapping[str, float]:
        await self.gate.passed()
        if self.gate.broken_restores:
            raise EngineStartFailed("the snapshot is of no use")
        return await super().restore(snapshot)

    async def stop(self, grace_s: float) -> None:
        await self.gate.ends.wait()
        await super().stop(grace_s)
