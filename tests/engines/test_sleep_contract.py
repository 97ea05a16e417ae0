"""What the host asks of an engine that sleeps: the real one and the stand-in answer alike."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from coldstart import criu, sandbox
from coldstart.snapshots import Snapshot, SnapshotStore
from coldstart.spares import SpareRooms
from engines.calls import call
from engines.errors import EngineBroken
from engines.folders import RunFolders
from engines.host import EngineMaker
from engines.process import EngineProcess, EngineSite
from engines.snapshotting import Snapshots
from engines.spec import ModelSpec
from tests.engines.support import CRIU_DIR, eventually, standin
from tests.engines.support import spec as standin_spec
from tests.engines.test_vllm import CHAT

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
ENGINES = {"standin": (standin, standin_spec()), "vllm": (EngineProcess, CHAT)}


class Bench:
    """One kind of engine, its site, and a snapshot of it."""

    def __init__(self, make: EngineMaker, spec: ModelSpec, site: EngineSite, store: SnapshotStore) -> None:
        self.spec = spec
        self._make = make
        self._site = site
        self.snapshots = Snapshots(store, "4", lambda _: self.engine())
        self.snapshot: Snapshot

    def engine(self) -> EngineProcess:
        return self._make(self.spec, self._site)

    async def prepare(self, store: SnapshotStore) -> None:
        engine = self.engine()
        try:
            await engine.start()
            canary = await self.snapshots.warm_up(self.spec, engine)
            layout = store.draft(self.spec.id)
            dumped = await engine.dump(layout)
            assert await engine.healthy()  # it runs on
        finally:
            await engine.stop(1.0)
        self.snapshot = await self.snapshots.publish(self.spec, layout, dumped, canary, {})


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(ENGINES))
async def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bench]:
    make, spec = ENGINES[request.param]
    folder = tmp_path_factory.mktemp("bench")
    folders = RunFolders(folder / "run")
    folders.open()
    rooms = SpareRooms(await sandbox.probe(), folders.run_dir, 0)
    store = SnapshotStore(folder / "snapshots")
    store.open()
    made = Bench(make, spec, EngineSite(folders, rooms, criu.find(CRIU_DIR)), store)
    await made.prepare(store)
    yield made
    await rooms.close()
    folders.close()


async def test_a_restored_engine_answers_as_it_did(bench: Bench) -> None:
    engine = bench.engine()
    try:
        await engine.restore(bench.snapshot)
        await engine.wake(bench.snapshot.manifest.canary)
        assert (await engine.proof())["canary"] > 0
        assert await engine.healthy()
    finally:
        await engine.stop(0)


async def test_an_engine_that_does_not_ends_itself(bench: Bench) -> None:
    canary = {
        name: [value + 1 for value in told] if name == "values" else told + 1 if name == "number" else told
        for name, told in (bench.snapshot.manifest.canary or {}).items()
    }
    engine = bench.engine()
    try:
        await engine.restore(bench.snapshot)
        await engine.wake(canary)
        with pytest.raises(EngineBroken):
            await engine.proof()
        assert "71" in await engine.ended()
    finally:
        await engine.stop(0)


async def test_a_pause_ends_where_it_began(bench: Bench) -> None:
    engine = bench.engine()
    try:
        await engine.restore(bench.snapshot)
        await engine.wake(None)
        await engine.pause()
        assert await eventually(lambda: {state_of(pid) for pid in engine.pids()} == {"T"})
        await engine.resume()
        assert await engine.healthy()
    finally:
        await engine.stop(0)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_unknown_calls_are_refused(bench: Bench) -> None:
    engine = bench.engine()
    try:
        await engine.restore(bench.snapshot)
        status, _ = await call(Path(engine.address.uds or ""), "POST", "/torpor/nonsense", timeout_s=10)
        assert status == 404
    finally:
        await engine.stop(0)
