"""Sleeping in a snapshot and paused, and what must not be restored.

A stand-in in the real sandbox under the real CRIU: see `tests.engines.snapshot_fixtures`.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coldstart.sandbox.namespaces import uid_of
from coldstart.snapshots import manifest
from coldstart.snapshots.store import Snapshot
from coldstart.tiers import SleepTier
from engines.status import EngineState
from tests.engines.snapshot_fixtures import (
    ask,
    asleep,
    current,
    engine_pids,
    has_snapshot,
    model,
    snapshot_host,
)
from tests.engines.support import Starts, eventually, no_trace

pytestmark = pytest.mark.timeout(120)


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


def authority(run_dir: Path) -> set[str]:
    """The users, groups and capabilities of all engines' processes, and what keeps them from others."""
    names = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", "Seccomp_filters")
    return {
        line
        for pid in engine_pids(run_dir)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith(names)
    }


async def test_a_restored_engine_has_no_more_authority_than_a_fresh_one(run_dir: Path) -> None:
    user = "\t".join([str(uid_of("model"))] * 4)
    expected = {f"Cap{name}:\t{0:016x}" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    expected |= {f"Uid:\t{user}", f"Gid:\t{user}", "Groups:\t "}
    expected |= {"NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t1"}
    async with snapshot_host(run_dir) as host:
        await ask(host)
        assert authority(run_dir) == expected
        assert await eventually(has_snapshot(host), 20)
        assert await eventually(lambda: host.status()[0].state is EngineState.READY)
        await host.sleep("model", SleepTier.SNAPSHOT)
        assert (await ask(host))[1] is SleepTier.SNAPSHOT
        assert authority(run_dir) == expected


async def test_a_snapshot_of_an_earlier_format_is_not_restored_and_made_anew(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process has all of root's capabilities, which a restore would give back."""
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT", manifest.FORMAT - 1)
        async with asleep(run_dir) as host:
            earlier = current(host)
    async with snapshot_host(run_dir) as host:
        assert (await ask(host))[1] is SleepTier.COLD
        assert await eventually(lambda: has_snapshot(host)() and current(host).id != earlier.id, 20)
        assert await eventually(lambda: not earlier.layout.folder.exists())
    assert "it was written by another version of Torpor" in caplog.text


async def test_nothing_of_a_snapshot_is_open_to_others(run_dir: Path) -> None:
    """As the gateway makes it, with a umask of 077: /dev/shm is open in the sandbox, its copy is not."""
    before = os.umask(0o077)
    try:
        async with snapshot_host(run_dir) as host:
            await ask(host)
            assert await eventually(has_snapshot(host), 20)
            folder = current(host).layout.folder
            files = {folder, *folder.rglob("*")}
            assert {path.name for path in (folder / "box" / "written").iterdir()} >= {"100"}
            assert {str(path) for path in files if path.lstat().st_mode & 0o077} == set()
            await host.sleep("model", SleepTier.SNAPSHOT)
            assert (await ask(host))[1] is SleepTier.SNAPSHOT
    finally:
        os.umask(before)


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


def write_in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_and_rename(path: Path, content: bytes) -> None:
    other = path.with_name("another")
    other.write_bytes(content)
    other.rename(path)


@pytest.mark.parametrize("write", [write_in_place, write_and_rename])
async def test_a_memory_file_rewritten_with_its_size_and_mtime_restored_is_not_used(
    run_dir: Path, write: Callable[[Path, bytes], None], caplog: pytest.LogCaptureFixture
) -> None:
    """While the engine sleeps and the gateway runs: what a wake compares has the change of the inode too."""
    async with asleep(run_dir) as host:
        damaged = current(host)
        memory = damaged.layout.memory
        before = memory.stat()
        content = bytearray(memory.read_bytes())
        content[len(content) // 2] ^= 1
        write(memory, bytes(content))
        os.utime(memory, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = memory.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        _, tier = await ask(host)
        assert tier is SleepTier.COLD
        assert (
            "the snapshot is not used and will be made again: the content of memory has changed"
            in caplog.text
        )
        assert await eventually(lambda: has_snapshot(host)() and current(host).id != damaged.id, 20)


MACHINE = manifest.machine()


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({"kernel": "7.0.0"}, "kernel has changed"),
        ({"boot": "another"}, "boot has changed"),
        ({"cpu flags": "fewer"}, "cpu flags has changed"),
    ],
)
async def test_another_machine_or_boot_makes_it_anew(
    run_dir: Path,
    now: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with asleep(run_dir) as host:
        taken = current(host).id
    monkeypatch.setattr("engines.lifecycle.snapshots.machine", lambda: {**MACHINE, **now})
    async with snapshot_host(run_dir) as host:
        _, tier = await ask(host)
        assert tier is SleepTier.COLD
        assert await eventually(lambda: has_snapshot(host)() and current(host).id != taken, 20)
    assert reason in caplog.text


async def test_a_clock_that_has_started_again_makes_it_anew(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """CLOCK_MONOTONIC starts from zero at a boot: the timers of an image would lie in the far future."""
    async with asleep(run_dir):
        pass
    monkeypatch.setattr("coldstart.snapshots.store.monotonic_s", lambda: 5.0)
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
        assert weights.name in current(host).manifest.sources
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


@pytest.mark.parametrize("text", ["{{ messages[1].content }}", None])
async def test_another_chat_template_makes_it_anew(
    run_dir: Path, tmp_path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0].content }}")
    spec = model(chat_template=template)
    async with asleep(run_dir, spec) as host:
        assert current(host).manifest.taken_on["chat_template"]
    template.unlink()
    if text is not None:
        template.write_text(text)
    async with snapshot_host(run_dir, spec) as host:
        assert (await ask(host))[1] is SleepTier.COLD
    assert "chat_template has changed" in caplog.text


async def test_a_touched_file_with_the_same_content_is_still_good(run_dir: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    async with asleep(run_dir, model(source=tmp_path)) as host:
        weights.write_bytes(b"weights")
        assert (await ask(host))[1] is SleepTier.SNAPSHOT
