"""What dies while engines go to sleep or are woken: engines, CRIU, the gateway, the disk.

A stand-in in the real sandbox under the real CRIU: see `tests.engines.snapshot_fixtures`.
"""

import asyncio
import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coldstart.tiers import SleepTier
from engines.client.engine_client import EngineClient
from engines.errors import EngineBroken, SnapshotFailed
from engines.status import EngineState
from tests.engines.snapshot_fixtures import ask, asleep, current, has_snapshot, snapshot_host
from tests.engines.support import QUICK, ROOT, eventually, no_trace
from tests.process_table import processes_with

pytestmark = pytest.mark.timeout(120)


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


# A path in the sandbox that CRIU may write to.
SCRATCH = "/tmp/fault"
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
        fault = fault.replace("{0}", SCRATCH)
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
    """CRIU may have left the engine in pieces; the host notices that and replaces the engine."""
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
        wrapped_criu.write_text('if [ "$1" = restore ]; then (sleep 0.05; kill -9 100) & fi\n')
        asking = asyncio.create_task(ask(host))
        assert await eventually(lambda: any(run_dir.glob("engine-*/work/restore.log")))
        wrapped_criu.write_text("")
        assert (await asking)[0] > 0
    assert no_trace(run_dir)()


async def test_a_canary_that_differs_is_noticed_and_the_next_engine_is_another(run_dir: Path) -> None:
    async with asleep(run_dir) as host:
        snapshot = current(host)
        assert host.snapshots is not None
        wrong = replace(snapshot, manifest=replace(snapshot.manifest, canary={"number": 1}))
        host.snapshots._current["model"] = wrong
        with pytest.raises(EngineBroken):
            async with host.acquire("model") as lease, EngineClient(lease.address) as client:
                assert lease.unverified
                while True:
                    await client.request("GET", "/number", timeout_s=5)
        host.snapshots._current["model"] = snapshot
        assert await eventually(lambda: host.status()[0].state is not EngineState.READY)
        assert (await ask(host))[0] > 1


HOST = """
import asyncio, sys
from pathlib import Path
from tests.engines.snapshot_fixtures import ask, snapshot_host
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
