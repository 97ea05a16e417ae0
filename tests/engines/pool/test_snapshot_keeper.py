"""When a snapshot is made, when it is given up, and when making one is tried again.

A stand-in in the real sandbox under the real CRIU: see `tests.engines.snapshot_fixtures`.
"""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from coldstart.snapshots.manifest import Manifest
from coldstart.snapshots.store import Layout, Snapshot
from coldstart.tiers import SleepTier
from engines.client.engine_client import EngineClient
from engines.errors import EngineBroken, SnapshotFailed
from engines.host import EngineHost
from engines.lifecycle.control_calls import call
from engines.lifecycle.engine import Dumped
from engines.lifecycle.process import EngineProcess, Runtime
from engines.sizing import PROCESS_BYTES
from engines.spec import ModelSpec
from engines.status import EngineState
from tests.engines.snapshot_fixtures import ask, asleep, current, has_snapshot, model, snapshot_host
from tests.engines.support import QUICK, eventually, no_trace, standin_argv

pytestmark = pytest.mark.timeout(120)


def put_in_place(host: EngineHost, snapshot: Snapshot, canary: dict[str, int]) -> None:
    assert host.snapshots is not None
    wrong = replace(snapshot, manifest=replace(snapshot.manifest, canary=canary))
    host.snapshots._current["model"] = wrong


async def broken_wake(host: EngineHost) -> None:
    """A request of a restored engine that ends itself before it answers."""
    with pytest.raises(EngineBroken):
        async with host.acquire("model") as lease, EngineClient(lease.address) as client:
            assert lease.tier is SleepTier.SNAPSHOT
            while True:
                await client.request("GET", "/number", timeout_s=5)
    assert await eventually(lambda: host.status()[0].state is not EngineState.READY)


async def test_one_that_fails_to_be_restored_twice_is_made_anew(
    run_dir: Path, wrapped_criu: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with asleep(run_dir) as host:
        taken = current(host).id
        wrapped_criu.write_text('[ "$1" != restore ] || [ -e "$(dirname "$0")/well" ] || exit 1\n')
        assert (await ask(host))[1] is SleepTier.COLD
        await asyncio.sleep(0)
        assert current(host).id == taken, "once may be bad luck"
        await host.sleep("model", SleepTier.SNAPSHOT)
        assert (await ask(host))[1] is SleepTier.COLD
        wrapped_criu.with_name("well").touch()
        await host.sleep("model", SleepTier.COLD)
        assert (await ask(host))[1] is SleepTier.COLD
        assert await eventually(lambda: has_snapshot(host)() and current(host).id != taken, 20)
        assert "2 restores in a row have failed" in caplog.text
        await host.sleep("model", SleepTier.SNAPSHOT)
        assert (await ask(host))[1] is SleepTier.SNAPSHOT


async def test_a_canary_that_could_not_be_asked_is_no_verdict_on_the_snapshot(run_dir: Path) -> None:
    async with asleep(run_dir) as host:
        snapshot = current(host)
        put_in_place(host, snapshot, {"number": -1})
        await broken_wake(host)
        assert host.snapshots is not None
        host.snapshots._current["model"] = snapshot
        assert (await ask(host))[1] is SleepTier.SNAPSHOT


async def test_only_the_snapshot_that_answered_otherwise_is_condemned(run_dir: Path) -> None:
    async with asleep(run_dir) as host:
        snapshot = current(host)
        put_in_place(host, snapshot, {"number": 1})
        waking = asyncio.create_task(broken_wake(host))
        assert await eventually(lambda: host.status()[0].state is EngineState.READY)
        assert host.snapshots is not None
        host.snapshots._current["model"] = replace(snapshot, id="newer")
        await waking
        assert (await ask(host))[1] is SleepTier.SNAPSHOT


async def test_a_model_sent_to_sleep_during_its_first_snapshot_has_it_afterwards(run_dir: Path) -> None:
    async with snapshot_host(run_dir) as host:
        first, _ = await ask(host)
        await host.sleep("model", SleepTier.COLD)
        assert await eventually(has_snapshot(host), 20)
        second, tier = await ask(host)
        assert (tier, second != first) == (SleepTier.COLD, True), "as it was ordered"
        await host.sleep("model", SleepTier.SNAPSHOT)
        assert await ask(host) == (first, SleepTier.SNAPSHOT)


async def test_an_engine_is_dumped_before_its_first_request(run_dir: Path) -> None:
    """What a request leaves in an engine's memory must not be in the engines of other tenants."""
    served: list[bool] = []

    class Watched(EngineProcess):
        async def dump(self, layout: Layout) -> Dumped:
            served.extend(replica.served for replica in host._actors["model"]._replicas)
            return await super().dump(layout)

    def watched(spec: ModelSpec, runtime: Runtime) -> EngineProcess:
        return Watched(spec, runtime, argv=standin_argv, health_timeout_s=0.3)

    async with snapshot_host(run_dir, make=watched) as host:
        first, _ = await ask(host)
        assert served == [False]
        assert await eventually(has_snapshot(host), 20)
        before = current(host).id
        await host.snapshot("model")  # although its engine is idle
        assert served == [False, True], "the replica has served, so another engine was dumped"
        await host.sleep("model", SleepTier.SNAPSHOT)
        second, tier = await ask(host)
        assert (tier, current(host).id != before) == (SleepTier.SNAPSHOT, True)
        assert second != first, "it is the other engine's memory"


async def test_a_preloaded_engine_is_dumped_while_it_has_served_nobody(run_dir: Path) -> None:
    async with snapshot_host(run_dir, model(preload=True)) as host:
        assert await eventually(has_snapshot(host), 20)
        first, tier = await ask(host)
        assert tier is SleepTier.HOT
        await host.sleep("model", SleepTier.SNAPSHOT)
        assert await ask(host) == (first, SleepTier.SNAPSHOT)


async def test_a_retry_does_not_take_memory_from_others(
    run_dir: Path, wrapped_criu: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = replace(QUICK, snapshot_retry_s=0.2)
    size = model().kv_cache_bytes + PROCESS_BYTES
    async with snapshot_host(run_dir, policy=policy, memory_bytes=int(1.5 * size)) as host:
        wrapped_criu.write_text('if [ "$1" = dump ]; then exit 1; fi\n')
        first, _ = await ask(host)
        assert await eventually(lambda: "no new snapshot" in caplog.text, 20)
        wrapped_criu.write_text("")
        await asyncio.sleep(1.0)
        assert not has_snapshot(host)()
        assert await ask(host) == (first, SleepTier.HOT), "its engine stayed in memory"
        await host.sleep("model", SleepTier.COLD)
        assert await eventually(has_snapshot(host), 20)


async def test_a_dump_that_failed_is_tried_again_after_a_while(
    run_dir: Path, wrapped_criu: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with snapshot_host(run_dir, policy=replace(QUICK, snapshot_retry_s=0.3)) as host:
        wrapped_criu.write_text('if [ "$1" = dump ]; then exit 1; fi\n')
        first, _ = await ask(host)
        assert await eventually(lambda: "no new snapshot" in caplog.text, 20)
        wrapped_criu.write_text("")
        assert await eventually(has_snapshot(host), 20)
        assert (await ask(host))[0] == first, "the engine went on serving"


async def test_a_snapshot_that_is_ordered_of_a_busy_model_is_made_of_an_engine_of_its_own(
    run_dir: Path,
) -> None:
    async with snapshot_host(run_dir) as host, host.acquire("model"):
        ordered = await asyncio.wait_for(host.snapshot("model"), 30)
        assert ordered.state is EngineState.READY
        assert has_snapshot(host)()
    assert no_trace(run_dir)()


async def test_a_snapshot_is_refused_where_there_is_no_memory_for_its_engine(run_dir: Path) -> None:
    models = model(start_timeout_s=1.0, memory_bytes=4_000_000_000), model("other")
    async with snapshot_host(run_dir, *models, memory_bytes=3_500_000_000) as host, host.acquire("other"):
        with pytest.raises(SnapshotFailed, match="memory"):
            await asyncio.wait_for(host.snapshot("model"), 30)


@pytest.mark.parametrize("change", [{"taken_on": 7}, {"monotonic_s": "x"}, {"files": []}, {"pipe": None}])
async def test_a_manifest_of_wrong_types_is_a_stale_snapshot(
    run_dir: Path, change: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    async with asleep(run_dir) as host:
        path = current(host).layout.folder / "manifest.json"
        document = json.loads(path.read_bytes())
        document["manifest"].update(change)
    path.write_text(json.dumps(document))
    async with snapshot_host(run_dir) as host:
        assert (await ask(host))[1] is SleepTier.COLD
        assert await eventually(has_snapshot(host), 20)
    assert "manifest" in caplog.text


async def test_a_wake_that_raises_fails_its_requests_and_the_next_one_is_served(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: a defect in what a wake reads must not leave the model waking for ever."""
    async with asleep(run_dir) as host:
        with monkeypatch.context() as patch:
            patch.setattr(Manifest, "require", lambda *_: 1 / 0)
            with pytest.raises(Exception, match="failed to start"):
                await asyncio.wait_for(ask(host), 10)
        await asyncio.sleep(0.5)
        assert (await ask(host))[0] > 0


async def test_nobody_else_may_read_an_image(run_dir: Path) -> None:
    async with asleep(run_dir) as host:
        folder = current(host).layout.folder
        images = [folder, folder / "memory", *(folder / "images").iterdir()]
        assert len(images) > 2
        assert [path.name for path in images if path.stat().st_mode & 0o077] == []


async def test_an_engine_that_hangs_up_is_told_of_in_words(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), str(socket))
    async with server:
        with pytest.raises(EngineBroken, match="closed the connection before it answered /x"):
            await call(socket, "GET", "/x", timeout_s=5)
