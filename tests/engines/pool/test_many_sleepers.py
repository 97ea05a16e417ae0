"""Many requests, replicas and models: sharing wakes and memory, and leaking nothing.

A stand-in in the real sandbox under the real CRIU: see `tests.engines.snapshot_fixtures`.
"""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from coldstart.tiers import SleepTier
from engines.errors import EngineUnavailable
from engines.status import EngineState
from tests.engines.snapshot_fixtures import (
    ask,
    asleep,
    engine_pids,
    has_snapshot,
    model,
    number,
    snapshot_host,
)
from tests.engines.support import QUICK, Starts, eventually, no_trace
from tests.process_table import processes_with

pytestmark = pytest.mark.timeout(120)


async def test_one_restore_serves_all_who_wait(run_dir: Path) -> None:
    starts = Starts()
    async with asleep(run_dir, make=starts) as host:
        created = len(starts.created)
        answers = await asyncio.gather(*(ask(host) for _ in range(20)))
        assert len(set(answers)) == 1
        assert answers[0][1] is SleepTier.SNAPSHOT
        assert len(starts.created) == created + 1


async def test_replicas_are_restored_when_requests_queue_and_leave_again(run_dir: Path) -> None:
    busy = model(max_replicas=3, max_running=1, idle_pause_s=0.3)
    async with asleep(run_dir, busy) as host, AsyncExitStack() as stack:
        leases = [await stack.enter_async_context(host.acquire("model")) for _ in range(6)]
        each = Counter(lease.replica for lease in leases)
        assert list(each.values()) == [2, 2, 2], "more than three there may not be"
        assert len({await number(lease) for lease in leases}) == 1  # of one snapshot
        await stack.aclose()
        assert await eventually(lambda: len(host.status()[0].replicas) == 1)


async def test_conversations_that_begin_alike_meet_the_same_replica(run_dir: Path) -> None:
    busy = model(max_replicas=2, max_running=1)
    async with asleep(run_dir, busy) as host:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(host.acquire("model"))
            assert await eventually(
                lambda: [r.state for r in host.status()[0].replicas] == [EngineState.READY] * 2
            )
        seen: dict[int, int] = {}
        for prefix in (7, 8, 7, 8, 7):
            async with host.acquire("model", prefix=prefix) as lease:
                assert seen.setdefault(prefix, lease.replica) == lease.replica


async def test_memory_is_shared_and_who_has_a_request_in_flight_keeps_it(run_dir: Path) -> None:
    models = [model(name, snapshot=False) for name in ("one", "two", "three")]
    room_for_two = int(2.5 * (models[0].kv_cache_bytes + 1_500_000_000))
    host = snapshot_host(
        run_dir, *models, memory_bytes=room_for_two, policy=replace(QUICK, health_interval_s=60.0)
    )
    async with host:
        await ask(host, "one")
        async with host.acquire("two"):
            assert (await ask(host, "three"))[1] is SleepTier.COLD
            states = {status.id: status.state for status in host.status()}
            assert states["one"] is EngineState.COLD
            assert states["two"] is EngineState.READY
            async with host.acquire("three"):
                with pytest.raises(EngineUnavailable, match="in time"):
                    async with host.acquire("one", timeout_s=0.3):
                        pass
            assert (await ask(host, "one"))[0] > 0  # three has gone to sleep for it


async def test_min_hot_is_always_there(run_dir: Path) -> None:
    awake = (EngineState.READY, EngineState.SNAPSHOTTING)
    async with snapshot_host(run_dir, model(min_hot=1, idle_pause_s=0.05)) as host:
        assert await eventually(has_snapshot(host))
        await asyncio.sleep(0.5)
        assert host.status()[0].state in awake
        first, _ = await ask(host)
        wakes = len(host.status()[0].wakes)
        for pid in engine_pids(run_dir):
            with contextlib.suppress(ProcessLookupError):  # it has ended with the first of them
                os.kill(pid, signal.SIGKILL)
        assert await eventually(lambda: len(host.status()[0].wakes) > wakes)
        assert await ask(host) == (first, SleepTier.HOT)
        await host.sleep("model", SleepTier.SNAPSHOT)  # an order holds until a request comes
        await asyncio.sleep(0.3)
        assert host.status()[0].tier is SleepTier.SNAPSHOT


async def test_idle_engines_are_paused_and_then_leave(run_dir: Path) -> None:
    sleepy = model(idle_pause_s=0.2, idle_snapshot_s=1.0)
    async with asleep(run_dir, sleepy) as host:
        first, _ = await ask(host)
        assert await eventually(lambda: host.status()[0].state is EngineState.PAUSED)
        assert await ask(host) == (first, SleepTier.PAUSED)
        assert await eventually(lambda: host.status()[0].tier is SleepTier.SNAPSHOT)
        assert no_trace(run_dir)()
        assert await ask(host) == (first, SleepTier.SNAPSHOT)


CYCLES = int(os.environ.get("TORPOR_SOAK_CYCLES", "20"))


@pytest.mark.timeout(60 + 3 * CYCLES)
async def test_many_wakes_of_two_models_leak_nothing(run_dir: Path) -> None:
    """A tenth of what ``make soak`` does."""
    async with snapshot_host(run_dir, model("one"), model("two")) as host:
        numbers = {name: (await ask(host, name))[0] for name in ("one", "two")}
        for name in numbers:
            assert await eventually(has_snapshot(host, name), 20)
        for name in numbers:
            await host.sleep(name, SleepTier.SNAPSHOT)
        before: Held | None = None
        for turn in range(CYCLES):
            tier = SleepTier.PAUSED if turn % 4 == 3 else SleepTier.SNAPSHOT
            for name in numbers:
                assert (await ask(host, name))[0] == numbers[name]
                await host.sleep(name, tier)
            if tier is SleepTier.PAUSED:
                continue
            held = Held.now(run_dir)
            if turn >= 5:
                before = before or held
        assert before is not None
        for name in numbers:
            await host.sleep(name, SleepTier.SNAPSHOT)
        after = Held.now(run_dir)
        assert replace(after, resident_kb=0) == replace(before, resident_kb=0)
        assert after.resident_kb - before.resident_kb < 2000 + 20 * CYCLES


@dataclass(frozen=True)
class Held:
    """What this process and the system hold."""

    descriptors: int
    mounts: int
    processes: int
    tasks: int
    resident_kb: int

    @classmethod
    def now(cls, run_dir: Path) -> "Held":
        status = Path("/proc/self/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return cls(
            len(os.listdir("/proc/self/fd")),
            len(Path("/proc/mounts").read_text().splitlines()),
            len(processes_with(run_dir)),
            len(asyncio.all_tasks()),
            int(resident.split()[1]),
        )
