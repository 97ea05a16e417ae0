"""Who waits for an engine is served in order, by any engine that has a free slot.

A stand-in in the real sandbox under the real CRIU: see `tests.engines.snapshot_fixtures`.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from coldstart.tiers import SleepTier
from engines.host import EngineHost
from engines.status import EngineState
from tests.engines.gated_engine import Gate
from tests.engines.snapshot_fixtures import asleep, has_snapshot, model, snapshot_host
from tests.engines.support import QUICK, eventually

pytestmark = pytest.mark.timeout(60)

TWO = model(max_replicas=2, max_running=1)


def states(host: EngineHost) -> list[EngineState]:
    return sorted(replica.state for replica in host.status()[0].replicas)


class Crowd:
    """Requests that are held until they are told to end; ``served`` names them in the order of their turn."""

    def __init__(self, host: EngineHost) -> None:
        self.served: list[int] = []
        self._host = host
        self._ends: dict[int, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def ask(self, name: int) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks.append(asyncio.create_task(self._hold(name)))

    async def _hold(self, name: int) -> None:
        async with self._host.acquire("model", timeout_s=10):
            self.served.append(name)
            await self._ends[name].wait()

    async def end(self, *names: int) -> None:
        for name in names:
            self._ends[name].set()

    async def reaches(self, *names: int) -> bool:
        return await eventually(lambda: self.served == list(names))

    async def all(self) -> None:
        await asyncio.gather(*self._tasks)


async def test_a_free_slot_goes_to_who_waits_longest_while_another_engine_wakes(run_dir: Path) -> None:
    gate = Gate()
    async with asleep(run_dir, TWO, make=gate) as host:
        gate.shut(passes=1)
        crowd = Crowd(host)
        for name in range(4):
            crowd.ask(name)
        assert await crowd.reaches(0)
        assert await eventually(lambda: states(host) == [EngineState.READY, EngineState.RESTORING])
        crowd.ask(4)  # comes last, and is served last
        for name in range(4):
            await crowd.end(name)
            assert await crowd.reaches(*range(name + 2))
        await crowd.end(4)
        await crowd.all()
        assert states(host) == [EngineState.READY, EngineState.RESTORING]
        gate.open.set()


async def test_a_new_request_does_not_overtake(run_dir: Path) -> None:
    """The slot is free in the very moment in which it comes."""
    gate = Gate()
    async with asleep(run_dir, TWO, make=gate) as host:
        gate.shut(passes=1)
        crowd = Crowd(host)
        for name in range(3):
            crowd.ask(name)
        assert await crowd.reaches(0)
        await crowd.end(0)
        crowd.ask(3)
        assert await crowd.reaches(0, 1)
        await crowd.end(1, 2, 3)
        await crowd.all()
        assert crowd.served == [0, 1, 2, 3]
        gate.open.set()


async def test_asking_for_no_more_than_a_wake_is_answered_beside_a_busy_engine(run_dir: Path) -> None:
    gate = Gate()
    async with asleep(run_dir, TWO, make=gate) as host:
        gate.shut(passes=1)
        crowd = Crowd(host)
        for name in range(3):
            crowd.ask(name)
        assert await crowd.reaches(0)
        async with asyncio.timeout(5):
            assert (await host.wake("model")).state is EngineState.READY
        await crowd.end(0, 1, 2)
        await crowd.all()
        gate.open.set()


async def test_when_the_other_engine_cannot_be_woken_the_first_serves_all(run_dir: Path) -> None:
    gate = Gate()
    async with asleep(run_dir, TWO, make=gate) as host, AsyncExitStack() as stack:
        gate.shut(passes=1)
        crowd = Crowd(host)
        for name in range(3):
            crowd.ask(name)
        assert await crowd.reaches(0)
        gate.failing = True
        gate.open.set()
        assert await crowd.reaches(0, 1, 2)
        await crowd.end(0, 1, 2)
        await crowd.all()
        gate.failing = False
        await stack.enter_async_context(host.acquire("model"))


async def test_requests_are_served_beside_an_engine_that_gets_no_memory(run_dir: Path) -> None:
    """There is memory for one engine, which is always to be hot."""
    narrow = model(max_replicas=2, max_running=1, min_hot=1, memory_bytes=4 << 30)
    unmeasured = replace(QUICK, health_interval_s=60.0)
    async with snapshot_host(run_dir, narrow, memory_bytes=6_000_000_000, policy=unmeasured) as host:
        assert await eventually(has_snapshot(host), 20)
        await host.sleep("model", SleepTier.SNAPSHOT)
        crowd = Crowd(host)
        for name in range(4):
            crowd.ask(name)
        for name in range(4):
            await crowd.end(name)
        await crowd.all()
        assert crowd.served == [0, 1, 2, 3]
