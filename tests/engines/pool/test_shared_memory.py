"""Models that share the host's memory.

A stand-in in the real sandbox under the real CRIU: see `tests.engines.snapshot_fixtures`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from coldstart.tiers import SleepTier
from engines.errors import EngineUnavailable
from engines.host import EngineHost
from engines.spec import ModelSpec
from engines.status import EngineState
from tests.engines.gated_engine import Gate
from tests.engines.snapshot_fixtures import ask, asleep, model, snapshot_host
from tests.engines.support import QUICK, eventually

pytestmark = pytest.mark.timeout(60)

UNMEASURED = replace(QUICK, health_interval_s=60.0)
HUGE = 100 << 30
# What is reserved for a cold start: KV cache and processes.
STARTED = (1 << 30) + 1_500_000_000


def started(name: str, **changes: object) -> ModelSpec:
    return model(name, snapshot=False, **changes)


def states(host: EngineHost) -> list[EngineState]:
    return [status.state for status in host.status()]


@asynccontextmanager
async def crowded(run_dir: Path, **changes: object) -> AsyncIterator[EngineHost]:
    """One model is in use, and another one needs more than there is; a third would fit."""
    models = [started("busy"), started("huge", memory_bytes=HUGE, **changes), started("small")]
    policy = replace(UNMEASURED, restore_timeout_s=0.2)
    host = snapshot_host(run_dir, *models, memory_bytes=3 * STARTED, policy=policy)
    async with host, host.acquire("busy"):
        yield host


async def test_a_wake_without_memory_does_not_keep_others_from_theirs(run_dir: Path) -> None:
    async with crowded(run_dir) as host:
        waiting = asyncio.create_task(host.wake("huge"))
        assert await eventually(lambda: states(host)[1] is EngineState.STARTING)
        async with asyncio.timeout(5):
            assert (await ask(host, "small"))[1] is SleepTier.COLD
        waiting.cancel()
        await asyncio.wait((waiting,))


async def test_a_wake_without_memory_ends_with_the_last_who_waits_for_it(run_dir: Path) -> None:
    async with crowded(run_dir) as host:
        with pytest.raises(EngineUnavailable, match="in time"):
            async with host.acquire("huge", timeout_s=0.1):
                pass
        assert await eventually(lambda: states(host)[1] is EngineState.COLD)
        assert host.status()[1].replicas == ()


async def test_a_model_that_waits_for_memory_can_be_put_to_sleep(run_dir: Path) -> None:
    async with crowded(run_dir) as host:
        waiting = asyncio.create_task(host.wake("huge"))
        assert await eventually(lambda: states(host)[1] is EngineState.STARTING)
        async with asyncio.timeout(5):
            await host.sleep("huge", SleepTier.COLD)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert await eventually(lambda: states(host)[1] is EngineState.COLD)


async def test_waiting_for_no_more_than_a_wake_is_bounded_too(run_dir: Path) -> None:
    async with crowded(run_dir, start_timeout_s=0.2) as host:
        async with asyncio.timeout(5):
            with pytest.raises(EngineUnavailable, match="in time"):
                await host.wake("huge")


async def test_an_engine_that_never_fits_beside_one_that_is_always_hot_is_refused(run_dir: Path) -> None:
    models = [started("hot", min_hot=1), started("huge", memory_bytes=HUGE)]
    async with snapshot_host(run_dir, *models, memory_bytes=3 * STARTED, policy=UNMEASURED) as host:
        assert await eventually(lambda: states(host)[0] is EngineState.READY)
        began = time.monotonic()
        with pytest.raises(EngineUnavailable, match="failed to start"):
            await host.wake("huge")
        assert time.monotonic() - began < 5
        assert "never sleep" in (host.status()[1].failure or "")


async def test_one_engine_leaves_when_one_is_enough(run_dir: Path) -> None:
    """Leases that are given back while an engine ends put no other engine to sleep."""
    gate = Gate()
    models = [started(name) for name in ("one", "two", "three", "four")]
    limit = int(3.5 * STARTED)
    async with snapshot_host(run_dir, *models, memory_bytes=limit, policy=UNMEASURED, make=gate) as host:
        for name in ("one", "two", "three"):
            await ask(host, name)
        gate.ends.clear()
        waiting = asyncio.create_task(ask(host, "four"))
        assert await eventually(lambda: states(host)[0] is EngineState.DRAINING)
        for name in ("two", "three", "two"):
            assert (await ask(host, name))[1] is SleepTier.HOT
        gate.ends.set()
        assert (await waiting)[1] is SleepTier.COLD
        assert states(host) == [EngineState.COLD] + [EngineState.READY] * 3


async def test_room_is_kept_for_a_kv_cache_that_is_not_yet_used(run_dir: Path) -> None:
    """Until the engine is paused, which gives it back."""
    async with snapshot_host(run_dir, started("model")) as host:
        await ask(host)
        assert host.memory().reserved == STARTED
        assert await eventually(lambda: host.memory().reserved < STARTED)  # it has been measured
        measured = host.status()[0].memory_bytes
        assert host.memory().reserved == measured + (1 << 30)
        await host.sleep("model", SleepTier.PAUSED)
        assert host.memory().reserved == host.status()[0].memory_bytes < 1 << 30
        await ask(host)
        assert host.memory().reserved > 1 << 30
        await host.sleep("model", SleepTier.COLD)
        assert host.memory().reserved == 0
        await ask(host)
        assert host.memory().reserved > 1 << 30  # as the first one was found to need


async def test_a_restore_that_falls_back_takes_what_a_start_needs(run_dir: Path) -> None:
    gate = Gate()
    async with asleep(run_dir, policy=UNMEASURED, make=gate) as host:
        waking = asyncio.create_task(ask(host))
        assert (await waking)[1] is SleepTier.SNAPSHOT
        assert host.memory().reserved < STARTED
        await host.sleep("model", SleepTier.SNAPSHOT)
        gate.broken_restores = True
        assert (await ask(host))[1] is SleepTier.COLD
        assert host.memory().reserved == STARTED


async def test_an_engine_that_is_started_for_a_snapshot_takes_as_much_as_any(run_dir: Path) -> None:
    gate = Gate()
    async with snapshot_host(run_dir, make=gate) as host:
        gate.shut()
        ordered = asyncio.create_task(host.snapshot("model"))
        assert await eventually(lambda: host.memory().reserved > 0)
        assert host.memory().reserved == STARTED
        gate.open.set()
        await ordered
