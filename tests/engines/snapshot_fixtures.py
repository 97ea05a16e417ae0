"""A host whose engines sleep in snapshots: a stand-in in the real sandbox under the real CRIU.

The stand-in draws a number when it starts: the same number after a wake proves that it was restored, another
one that it was started again.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from coldstart.snapshots.store import Snapshot
from coldstart.tiers import SleepTier
from engines.client.engine_client import EngineClient
from engines.host import EngineHost
from engines.spec import ModelSpec
from engines.status import EngineLease
from tests.engines.support import CRIU_DIR, QUICK, spec, standin
from tests.process_table import processes_with

FOREVER = 1e6


def model(name: str = "model", **changes: object) -> ModelSpec:
    """A model that goes to sleep only on an order."""
    created = replace(spec(name), idle_pause_s=FOREVER, idle_snapshot_s=FOREVER)
    return replace(created, **changes)  # type: ignore[arg-type]


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
    """Whether there is one, and none is being made."""

    def there() -> bool:
        shelf = host._actors[name]._keeper
        assert shelf is not None
        return shelf.has_snapshot and shelf._task is None

    return there


def current(host: EngineHost, name: str = "model") -> Snapshot:
    """The newest; the one before it is deleted a moment after."""
    assert host.snapshots is not None
    return host.snapshots.store.list(name)[0]


@asynccontextmanager
async def asleep(run_dir: Path, *models: ModelSpec, **options: object) -> AsyncIterator[EngineHost]:
    """A host whose first model sleeps in a snapshot."""
    async with snapshot_host(run_dir, *models, **options) as host:
        name = host.status()[0].id
        await host.snapshot(name)
        await host.sleep(name, SleepTier.SNAPSHOT)
        yield host


def engine_pids(run_dir: Path) -> list[int]:
    """The processes of engines, without those of their sandboxes."""
    answer = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_with(run_dir)}
    return [pid for pid, command in answer.items() if b"init.py" not in command]
