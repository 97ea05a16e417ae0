"""Sleeping in a snapshot and paused, with a stand-in in the real sandbox under the real CRIU.

The stand-in draws a number when it starts: the same number after a wake proves that it was restored, another
one that it was started anew.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from coldstart.snapshots import Snapshot
from coldstart.tiers import SleepTier
from engines.client import EngineClient
from engines.host import EngineHost
from engines.spec import ModelSpec
from engines.status import EngineLease, EngineState
from tests.engines.support import CRIU_DIR, QUICK, Starts, eventually, no_trace, spec, standin
from tests.process_table import processes_with

pytestmark = pytest.mark.timeout(120)
FOREVER = 1e6


def model(name: str = "model", **changes: object) -> ModelSpec:
    """It goes to sleep only when it is told to."""
    made = replace(spec(name), idle_pause_s=FOREVER, idle_snapshot_s=FOREVER)
    return replace(made, **changes)  # type: ignore[arg-type]


def snapshot_host(run_dir: Path, *models: ModelSpec, **options: object) -> EngineHost:
    settings: dict[str, object] = {"policy": QUICK, "make": standin, **options}
    return EngineHost(
        models or (model(),),
        run_dir=run_dir,
        snapshot_dir=run_dir / "snapshots",
        criu_dir=CRIU_DIR,
        **settings,  # type: ignore[arg-type]
    )


async def number(lease: EngineLease) -> int:
    async with EngineClient(lease.address) as client:
        return int((await client.request("GET", "/number", timeout_s=5)).body)


async def ask(host: EngineHost, name: str = "model") -> tuple[int, SleepTier]:
    """A request: the number of the engine that answered, and the tier that it was found in."""
    async with host.acquire(name) as lease:
        return await number(lease), lease.tier


def has_snapshot(host: EngineHost, name: str = "model") -> Callable[[], bool]:
    return lambda: host.snapshots is not None and bool(host.snapshots.store.list(name))


def current(host: EngineHost, name: str = "model") -> Snapshot:
    assert host.snapshots is not None
    (snapshot,) = host.snapshots.store.list(name)
    return snapshot


@asynccontextmanager
async def asleep(run_dir: Path, *models: ModelSpec, **options: object) -> AsyncIterator[EngineHost]:
    """A host whose first model sleeps in a snapshot."""
    async with snapshot_host(run_dir, *models, **options) as host:
        name = host.status()[0].id
        await host.snapshot(name)
        await host.sleep(name, SleepTier.SNAPSHOT)
        yield host


async def test_the_first_start_makes_a_snapshot_and_the_next_wake_uses_it(run_dir: Path) -> None:
    starts = Starts()
    async with snapshot_host(run_dir, make=starts) as host:
        first, tier = await ask(host)
        assert tier is SleepTier.COLD
        assert await eventually(has_snapshot(host), 20)
        assert await eventually(lambda: host.status()[0].state is EngineState.READY)
        assert (await host.sleep("model", SleepTier.SNAPSHOT)).state is EngineState.COLD
        status = host.status()[0]
        assert (status.tier, status.memory_bytes, status.replicas) == (SleepTier.SNAPSHOT, 0, ())
        assert no_trace(run_dir)()
        before = current(host).id
        for _ in range(3):
            assert await ask(host) == (first, SleepTier.SNAPSHOT)
            assert await ask(host) == (first, SleepTier.HOT)
            await host.sleep("model", SleepTier.SNAPSHOT)
        assert current(host).id == before  # going back to sleep dumps nothing
        wake = host.status()[0].wakes[-1]
        assert wake.source is SleepTier.SNAPSHOT
        assert {"sandbox", "restore", "canary", "total"} <= wake.ms.keys()
    async with snapshot_host(run_dir) as host:  # another run of the gateway, the same boot
        assert host.status()[0].tier is SleepTier.SNAPSHOT
        assert await ask(host) == (first, SleepTier.SNAPSHOT)
    assert no_trace(run_dir)()


async def test_a_paused_engine_uses_no_processor_and_is_back_as_it_was(run_dir: Path) -> None:
    async with snapshot_host(run_dir, model(snapshot=False)) as host:
        first, _ = await ask(host)
        assert (await host.sleep("model", SleepTier.PAUSED)).state is EngineState.PAUSED
        assert host.status()[0].tier is SleepTier.PAUSED
        states = {
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            for pid in engine_pids(run_dir)
        }
        assert states == {"T"}
        assert await ask(host) == (first, SleepTier.PAUSED)
        await host.sleep("model", SleepTier.PAUSED)
        assert (await host.sleep("model", SleepTier.COLD)).state is EngineState.COLD
        assert no_trace(run_dir)()
        await ask(host)
        await host.sleep("model", SleepTier.PAUSED)
    assert no_trace(run_dir)()


def engine_pids(run_dir: Path) -> list[int]:
    """The processes of engines, without those of their sandboxes."""
    told = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_with(run_dir)}
    return [pid for pid, command in told.items() if b"init.py" not in command]
