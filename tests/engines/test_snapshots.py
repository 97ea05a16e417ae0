"""Sleeping in a snapshot and paused, with a stand-in in the real sandbox under the real CRIU.

The stand-in draws a number when it starts: the same number after a wake proves that it was restored, another
one that it was started anew.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from coldstart import criu, manifest
from coldstart.criu import Criu
from coldstart.snapshots import Snapshot
from coldstart.tiers import SleepTier
from engines.client import EngineClient
from engines.errors import EngineBroken, EngineUnavailable, SnapshotFailed
from engines.host import EngineHost
from engines.spec import ModelSpec
from engines.status import EngineLease, EngineState
from tests.engines.support import CRIU_DIR, QUICK, ROOT, Starts, eventually, no_trace, spec, standin
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


# -- what must not be used ----------------------------------------------------------------------------------


def flip_a_byte(snapshot: Snapshot) -> None:
    path = snapshot.layout.memory
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def cut_short(snapshot: Snapshot) -> None:
    path = snapshot.layout.images / "files.img"
    os.truncate(path, path.stat().st_size - 1)


def take_a_file_away(snapshot: Snapshot) -> None:
    (snapshot.layout.images / "pstree.img").unlink()


def garble_the_manifest(snapshot: Snapshot) -> None:
    (snapshot.layout.folder / "manifest.json").write_text('{"format": 1, "files": 7}')


DAMAGE = [flip_a_byte, cut_short, take_a_file_away, garble_the_manifest]


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_snapshot_is_seen_before_it_is_used_and_made_anew(
    run_dir: Path, damage: Callable[[Snapshot], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with snapshot_host(run_dir) as host:
        first, _ = await ask(host)
        assert await eventually(has_snapshot(host), 20)
        damaged = current(host)
    damage(damaged)
    async with snapshot_host(run_dir) as host:
        again, tier = await ask(host)
        assert (again != first, tier) == (True, SleepTier.COLD)
        assert await eventually(lambda: has_snapshot(host)() and current(host).id != damaged.id, 20)
        assert await eventually(lambda: not damaged.layout.folder.exists())
        await host.sleep("model", SleepTier.SNAPSHOT)
        assert await ask(host) == (again, SleepTier.SNAPSHOT)
    assert "is not used" in caplog.text


MACHINE = manifest.machine()


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"kernel": "7.0.0"}, "kernel has changed"),
        ({"boot": "another"}, "boot has changed"),
        ({"cpu flags": "fewer"}, "cpu flags has changed"),
    ],
)
async def test_another_machine_or_boot_makes_it_anew(
    run_dir: Path,
    now: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with asleep(run_dir) as host:
        taken = current(host).id
    monkeypatch.setattr("engines.snapshotting.machine", lambda: {**MACHINE, **now})
    async with snapshot_host(run_dir) as host:
        _, tier = await ask(host)
        assert tier is SleepTier.COLD
        assert await eventually(lambda: has_snapshot(host)() and current(host).id != taken, 20)
    assert told in caplog.text


async def test_a_clock_that_has_started_again_makes_it_anew(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CLOCK_MONOTONIC starts from zero at a boot: the timers of an image would lie in the far future."""
    async with asleep(run_dir):
        pass
    monkeypatch.setattr("coldstart.snapshots.monotonic_s", lambda: 5.0)
    async with snapshot_host(run_dir) as host:
        assert (await ask(host))[1] is SleepTier.COLD
    assert "the clock has started again" in caplog.text


@pytest.mark.parametrize("change", ["arguments", "weights"])
async def test_other_arguments_or_weights_make_it_anew(
    run_dir: Path, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    async with asleep(run_dir, model(source=tmp_path)) as host:
        assert str(weights) in current(host).manifest.sources
    changed = model(source=tmp_path)
    if change == "arguments":
        changed = replace(changed, engine_args=("start_s=0.2",))
    else:
        weights.write_bytes(b"weightz")
    async with snapshot_host(run_dir, changed) as host:
        assert (await ask(host))[1] is SleepTier.COLD
    expected = (
        "arguments has changed" if change == "arguments" else "the content of model.safetensors has changed"
    )
    assert expected in caplog.text


async def test_a_touched_file_with_the_same_content_is_still_good(run_dir: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    async with asleep(run_dir, model(source=tmp_path)) as host:
        weights.write_bytes(b"weights")
        assert (await ask(host))[1] is SleepTier.SNAPSHOT


# -- faults -------------------------------------------------------------------------------------------------


@pytest.fixture
def wrapped_criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CRIU that first runs the shell script that is returned, with CRIU's own arguments."""
    script = tmp_path / "before.sh"
    script.write_text("")
    real = criu.find(CRIU_DIR)
    wrapper = tmp_path / "criu.sh"
    wrapper.write_text(f'#!/bin/sh\n. {script}\nexec {" ".join(real.argv)} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr("coldstart.criu.find", lambda _: Criu((str(wrapper),), real.version))
    return script


@pytest.mark.parametrize(
    "fault",
    ["kill -9 $$", "exit 1", "sleep 1; kill -9 $$", "set -- nonsense"],
    ids=["kill", "exit", "late", "args"],
)
async def test_a_restore_that_fails_falls_back_to_a_cold_start_in_the_same_request(
    run_dir: Path, wrapped_criu: Path, fault: str
) -> None:
    async with asleep(run_dir) as host:
        wrapped_criu.write_text(f'if [ "$1" = restore ]; then {fault}; fi\n')
        _, tier = await ask(host)
        assert tier is SleepTier.COLD
        await host.sleep("model", SleepTier.COLD)
        assert no_trace(run_dir)()


async def test_a_restore_that_hangs_is_ended(run_dir: Path, wrapped_criu: Path) -> None:
    async with asleep(run_dir, policy=replace(QUICK, restore_timeout_s=1.0)) as host:
        wrapped_criu.write_text('if [ "$1" = restore ]; then sleep 1000; fi\n')
        assert (await ask(host))[1] is SleepTier.COLD
    assert no_trace(run_dir)()


AT_THE_END = """echo $$ > {0}.pid
printf '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] && kill -9 $(cat {0}.pid)\n' > {0}.end
chmod +x {0}.end
set -- "$@" --action-script {0}.end"""


@pytest.mark.parametrize("fault", ["kill -9 $$", "exit 1", AT_THE_END], ids=["kill", "exit", "at the end"])
async def test_a_dump_that_fails_leaves_the_engine_serving_and_the_old_snapshot(
    run_dir: Path, wrapped_criu: Path, fault: str
) -> None:
    async with snapshot_host(run_dir) as host:
        first, _ = await ask(host)
        assert await eventually(has_snapshot(host), 20)
        before = current(host).id
        fault = fault.replace("{0}", str(wrapped_criu))
        wrapped_criu.write_text(f'if [ "$1" = dump ]; then\n{fault}\nfi\n')
        with pytest.raises(SnapshotFailed):
            await host.snapshot("model")
        assert await ask(host) == (first, SleepTier.HOT)
        assert current(host).id == before
        assert not list((run_dir / "snapshots").glob("*/.new-*"))


@pytest.mark.parametrize("after_s", [0.01, 0.02, 0.03, 0.04, 0.06])
async def test_requests_are_served_after_criu_was_killed_in_the_middle_of_a_dump(
    run_dir: Path, wrapped_criu: Path, after_s: float
) -> None:
    """It may have left the engine in pieces, which is then noticed and replaced."""
    async with snapshot_host(run_dir) as host:
        await ask(host)
        assert await eventually(has_snapshot(host), 20)
        wrapped_criu.write_text(f'if [ "$1" = dump ]; then (sleep {after_s}; kill -9 $$) & fi\n')
        with contextlib.suppress(SnapshotFailed):  # where the dump was faster
            await host.snapshot("model")
        assert (await ask(host))[0] > 0
        assert not list((run_dir / "snapshots").glob("*/.new-*"))
    assert no_trace(run_dir)()


async def test_a_full_disk_leaves_the_engine_serving_and_no_rubbish(run_dir: Path) -> None:
    folder = run_dir / "snapshots"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True)
    try:
        async with snapshot_host(run_dir) as host:
            first, _ = await ask(host)
            with pytest.raises(SnapshotFailed):
                await host.snapshot("model")
            assert await ask(host) == (first, SleepTier.HOT)
            assert list(folder.glob("*/*")) == []
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_an_engine_killed_while_it_is_woken_is_woken_again(run_dir: Path, wrapped_criu: Path) -> None:
    """The first restore loses its tree as soon as it is there."""
    async with asleep(run_dir) as host:
        once = run_dir / "once"
        wrapped_criu.write_text(
            f'if [ "$1" = restore ] && mkdir {once} 2>/dev/null; then (sleep 0.05; kill -9 100) & fi\n'
        )
        answered, _ = await ask(host)
        assert answered > 0
    assert no_trace(run_dir)()


async def test_a_canary_that_differs_is_noticed_and_the_next_engine_is_another(run_dir: Path) -> None:
    async with asleep(run_dir) as host:
        snapshot = current(host)
        assert host.snapshots is not None
        wrong = replace(snapshot, manifest=replace(snapshot.manifest, canary={"number": 1}))
        host.snapshots._current["model"] = wrong
        with pytest.raises(EngineBroken):
            async with host.acquire("model") as lease, EngineClient(lease.address) as client:
                assert lease.fresh
                while True:
                    await client.request("GET", "/number", timeout_s=5)
        host.snapshots._current["model"] = snapshot
        assert await eventually(lambda: host.status()[0].state is not EngineState.READY)
        assert (await ask(host))[0] > 1


HOST = """
import asyncio, sys
from pathlib import Path
from tests.engines.test_snapshots import ask, snapshot_host, model
from coldstart.tiers import SleepTier

async def main() -> None:
    async with snapshot_host(Path(sys.argv[1])) as host:
        for _ in range(1000):
            await ask(host)
            print("awake", flush=True)
            await host.snapshot("model")
            await host.sleep("model", SleepTier.SNAPSHOT)

asyncio.run(main())
"""


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.6, 2.1])
async def test_a_gateway_killed_in_any_phase_leaves_nothing_that_the_next_start_does_not_clear(
    run_dir: Path, after_s: float
) -> None:
    """The phases are gone through in a loop; the moments are spread over the first two rounds."""
    mounts = len(Path("/proc/mounts").read_text().splitlines())
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOST, str(run_dir)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert gateway.stdout is not None
    assert await gateway.stdout.readline() == b"awake\n"
    await asyncio.sleep(after_s)
    gateway.kill()
    await gateway.wait()
    assert await eventually(lambda: not processes_with(run_dir))
    await gateway.stdout.read()
    gateway._transport.close()  # type: ignore[attr-defined]
    async with snapshot_host(run_dir) as host:
        assert await eventually(lambda: not list(run_dir.glob("engine-*")))
        assert not list((run_dir / "snapshots").glob("*/.new-*"))
        assert (await ask(host))[0] > 0
    assert no_trace(run_dir)()
    assert len(Path("/proc/mounts").read_text().splitlines()) == mounts


async def test_a_request_in_the_very_moment_of_going_to_sleep_is_served(run_dir: Path) -> None:
    tiers = [SleepTier.SNAPSHOT, SleepTier.PAUSED]
    async with asleep(run_dir) as host:
        for turn in range(20):
            await ask(host)
            sleeping = asyncio.ensure_future(host.sleep("model", tiers[turn % 2]))
            await asyncio.sleep(0.002 * turn)
            answered, _ = await ask(host)
            assert answered > 0
            await sleeping


# -- many ---------------------------------------------------------------------------------------------------


async def test_one_restore_serves_all_who_wait(run_dir: Path) -> None:
    starts = Starts()
    async with asleep(run_dir, make=starts) as host:
        made = len(starts.made)
        answers = await asyncio.gather(*(ask(host) for _ in range(20)))
        assert len(set(answers)) == 1
        assert answers[0][1] is SleepTier.SNAPSHOT
        assert len(starts.made) == made + 1


async def test_replicas_are_restored_when_requests_queue_and_leave_again(run_dir: Path) -> None:
    busy = model(max_replicas=3, max_running=1, idle_pause_s=0.3)
    async with asleep(run_dir, busy) as host, AsyncExitStack() as stack:
        leases = [await stack.enter_async_context(host.acquire("model")) for _ in range(2)]
        assert await eventually(lambda: len(host.status()[0].replicas) == 2)
        assert await eventually(lambda: all(r.state is EngineState.READY for r in host.status()[0].replicas))
        leases += [await stack.enter_async_context(host.acquire("model")) for _ in range(2)]
        assert {lease.replica for lease in leases} == {leases[0].replica, leases[-1].replica}
        assert leases[0].replica != leases[2].replica
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
    async with snapshot_host(run_dir, model(min_hot=1, idle_pause_s=0.05)) as host:
        assert await eventually(lambda: host.status()[0].state is EngineState.READY)
        await asyncio.sleep(0.5)
        assert host.status()[0].state in (EngineState.READY, EngineState.SNAPSHOTTING)


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
        assert (after.descriptors, after.mounts, after.processes) == (
            before.descriptors,
            before.mounts,
            before.processes,
        )
        assert after.resident_kb - before.resident_kb < 2000 + 20 * CYCLES


@dataclass(frozen=True)
class Held:
    """What this process and the system hold."""

    descriptors: int
    mounts: int
    processes: int
    resident_kb: int

    @classmethod
    def now(cls, run_dir: Path) -> "Held":
        status = Path("/proc/self/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return cls(
            len(os.listdir("/proc/self/fd")),
            len(Path("/proc/mounts").read_text().splitlines()),
            len(processes_with(run_dir)),
            int(resident.split()[1]),
        )
