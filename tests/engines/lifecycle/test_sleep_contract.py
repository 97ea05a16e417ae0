"""What the host asks of an engine that sleeps or has adapters: the real one and the stand-in answer alike."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from coldstart.criu import program
from coldstart.sleep_drivers import CpuDriver
from coldstart.snapshots.store import Snapshot, SnapshotStore
from engines.adapter import Adapter
from engines.errors import EngineBroken
from engines.host import EngineMaker
from engines.lifecycle.control_calls import call
from engines.lifecycle.isolation import prepare_runtime
from engines.lifecycle.process import EngineProcess, Runtime
from engines.lifecycle.run_folders import RunFolders
from engines.lifecycle.snapshots import EngineSnapshots
from engines.spec import LoraSettings, ModelSpec
from loadtest.adapter_files import make_adapter
from tests.engines.support import CRIU_DIR, eventually, standin
from tests.engines.support import spec as standin_spec
from tests.engines.vllm_process.test_server import CHAT, MODELS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
LORA = LoraSettings(slots=2, cpu_slots=2)
ENGINES = {
    "standin": (standin, replace(standin_spec(), lora=LORA)),
    "vllm": (EngineProcess, replace(CHAT, lora=LORA)),
}


class Bench:
    """One kind of engine, its site, and a snapshot of it."""

    def __init__(self, make: EngineMaker, spec: ModelSpec, runtime: Runtime, store: SnapshotStore) -> None:
        self.spec = spec
        self._make = make
        self.runtime = runtime
        self.snapshots = EngineSnapshots(store, "4", lambda _: self.engine())
        self.snapshot: Snapshot

    def engine(self) -> EngineProcess:
        return self._make(self.spec, self.runtime)

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
    criu = program.find(CRIU_DIR)
    runtime, reason = await prepare_runtime(folders, criu, CpuDriver())
    assert reason is None
    store = SnapshotStore(folder / "snapshots")
    store.open()
    created = Bench(make, spec, runtime, store)
    await created.prepare(store)
    yield created
    await runtime.sandboxes.close()
    folders.close()


async def test_what_vllm_found_out_about_the_models_class_is_kept(bench: Bench) -> None:
    """The engine has served no request then; the stand-in has no such thing."""
    kept = bench.runtime.folders.model_classes(bench.spec.id)
    names = [path.name for path in kept.iterdir()] if kept.exists() else []
    assert [name.endswith("LlamaForCausalLM.json") for name in names] == [True] * (bench.spec.id == CHAT.id)


async def test_a_restored_engine_answers_as_it_did(bench: Bench) -> None:
    engine = bench.engine()
    try:
        await engine.restore(bench.snapshot)
        await engine.wake(bench.snapshot.manifest.canary)
        assert (await engine.proof())["canary"] > 0
        assert await engine.healthy()
    finally:
        await engine.stop(0)


@pytest.mark.parametrize("proven_first", [False, True])
async def test_an_engine_that_does_not_ends_itself(bench: Bench, *, proven_first: bool) -> None:
    """Each time that it is told that it was restored: `loadtest.wake_costs` measures the canary so."""
    canary = {
        name: [value + 1 for value in answer]
        if name == "values"
        else answer + 1
        if name == "number"
        else answer
        for name, answer in (bench.snapshot.manifest.canary or {}).items()
    }
    engine = bench.engine()
    try:
        await engine.restore(bench.snapshot)
        if proven_first:
            await engine.wake(bench.snapshot.manifest.canary)
            await engine.proof()
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


class Attached:
    """An engine's adapters, as the host and a request see them."""

    def __init__(self, engine: EngineProcess) -> None:
        self._socket = Path(engine.address.uds or "")

    async def names(self) -> list[str]:
        _, answer = await call(self._socket, "GET", "/torpor/adapters", timeout_s=10)
        names: list[str] = answer["names"]
        return names

    async def canary(self, name: str) -> dict[str, Any]:
        path = f"/torpor/adapters/{name}/canary"
        status, answer = await call(self._socket, "POST", path, timeout_s=30)
        assert status == 200, answer
        return dict(answer)

    async def ask(self, name: str) -> tuple[int, str]:
        """The status, and the model or the error that the answer tells."""
        body = {"model": f"{name}/ft:public", "prompt": "Hello", "max_tokens": 2}
        status, answer = await call(self._socket, "POST", "/v1/completions", body, timeout_s=30)
        return status, answer["model"] if status == 200 else answer["error"]["code"]


async def test_an_adapter_is_served_once_its_canary_has_passed(bench: Bench, tmp_path: Path) -> None:
    files = make_adapter(tmp_path / "adapter", MODELS / CHAT.id, seed=1, strength=1.0)
    adapter = Adapter("ft:public", "ab" * 32, files, rank=8)
    engine = bench.engine()
    try:
        await engine.restore(bench.snapshot)
        await engine.wake(bench.snapshot.manifest.canary)
        door, attached = engine.adapters, Attached(engine)
        await door.load(adapter, "ab.1", 1, None)
        assert await attached.ask("ab.1") == (503, "adapter_unfit")
        canary = await attached.canary("ab.1")
        adapter = replace(adapter, canary=json.dumps(canary).encode())
        await door.load(adapter, "ab.2", 2, "ab.1")
        assert await attached.names() == ["ab.2"]
        assert await attached.ask("ab.2") == (200, "ft:public")
        assert (await door.proof("ab.2"))["fit"]

        spoiled = {k: [v + 1 for v in answer] if k == "values" else answer for k, answer in canary.items()}
        spoiled |= {"text": "another's"}
        await door.load(replace(adapter, canary=json.dumps(spoiled).encode()), "ab.3", 3, None)
        assert await attached.ask("ab.3") == (503, "adapter_unfit")
        assert not (await door.proof("ab.3"))["fit"]
        assert await attached.ask("ab.2") == (200, "ft:public")
        await door.unload("ab.3")

        await door.unload("ab.2")
        assert await attached.ask("ab.2") == (503, "adapter_unfit")
        await door.load(adapter, "ab.4", 4, None)
        await engine.pause()
        await engine.resume()
        assert await attached.names() == []
    finally:
        await engine.stop(0)
