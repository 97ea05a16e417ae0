"""A replica that is stopped, dumped, paused: what it leaves behind, and who may use it."""

import asyncio
from dataclasses import replace
from pathlib import Path

from coldstart.snapshots.store import Layout
from coldstart.tiers import SleepTier
from engines.client.engine_client import EngineClient
from engines.errors import HostClosing
from engines.host import EngineHost
from engines.lifecycle.engine import Dumped
from engines.lifecycle.process import DumpFailed, EngineProcess, Runtime
from engines.spec import EngineAddress, ModelSpec
from engines.status import EngineState
from tests.engines.snapshot_fixtures import snapshot_host
from tests.engines.support import QUICK, Starts, eventually, host, no_trace, spec, standin_argv


async def test_leaving_the_host_waits_for_an_engine_that_is_being_stopped(run_dir: Path) -> None:
    async with host(run_dir, Starts("deaf=1")) as engines:
        await engines.wake("model")
        asleep = asyncio.create_task(engines.sleep("model", SleepTier.COLD))
        assert await eventually(lambda: engines.status()[0].state is EngineState.DRAINING)
        await engines.__aexit__(None, None, None)
        assert no_trace(run_dir)()
        await asyncio.wait((asleep,))
        assert isinstance(asleep.exception(), HostClosing)


class Torn(EngineProcess):
    """A dump leaves the engine in pieces: it answers no health check."""

    failing = asyncio.Event()

    async def dump(self, layout: Layout) -> Dumped:
        async with EngineClient(self.address) as client:
            await client.request("POST", "/deafen", b"", timeout_s=5)
        await self.failing.wait()
        raise DumpFailed("CRIU was killed")


async def test_who_waits_for_a_dump_that_fails_gets_no_engine_that_is_in_pieces(run_dir: Path) -> None:
    created: list[EngineProcess] = []

    def make(spec: ModelSpec, runtime: Runtime) -> EngineProcess:
        kind = EngineProcess if created else Torn
        created.append(kind(spec, runtime, argv=standin_argv, health_timeout_s=0.3))
        return created[-1]

    Torn.failing = asyncio.Event()
    async with snapshot_host(run_dir, make=make) as engines:
        waking = asyncio.create_task(engines.wake("model"))
        assert await eventually(lambda: engines.status()[0].state is EngineState.SNAPSHOTTING)
        first = created[0].address

        async def address() -> EngineAddress:
            async with engines.acquire("model") as lease:
                return lease.address

        request = asyncio.create_task(address())
        assert await eventually(lambda: len(engines._actors["model"]._waiters) == 2)
        Torn.failing.set()
        assert await request != first
        await waking
        assert len(created) == 2


async def test_pauses_leave_no_tasks(run_dir: Path) -> None:
    async with host(run_dir) as engines:
        counts = set()
        for _ in range(4):
            await engines.wake("model")
            await engines.sleep("model", SleepTier.PAUSED)
            counts.add(len(asyncio.all_tasks()))
        assert len(counts) == 1


async def test_a_back_off_has_one_timer(run_dir: Path) -> None:
    def timers() -> int:
        scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        return sum(not timer.cancelled() for timer in scheduled)

    failing = replace(spec(), min_hot=1)
    policy = replace(QUICK, backoff_s=60.0, backoff_max_s=60.0)
    starts = Starts("fail=nothing will do")
    async with EngineHost([failing], run_dir=run_dir, policy=policy, make=starts) as engines:
        assert await eventually(lambda: engines.status()[0].state is EngineState.FAILED)
        assert await eventually(no_trace(run_dir))
        before = timers()
        actor = engines._actors["model"]
        for _ in range(5):
            actor._post(actor.settle)
        await asyncio.sleep(0)
        assert await eventually(actor._inbox.empty)
        assert timers() <= before
