"""Snapshots in use are read in full in the background: what no file's identity tells is found then.

A stand-in in the real sandbox under the real CRIU: see `tests.engines.snapshot_fixtures`.
"""

import asyncio
import mmap
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from coldstart.snapshots.digester import DigestFailed, digests
from coldstart.snapshots.manifest import FileIdentity
from coldstart.tiers import SleepTier
from engines.host import EngineHost
from engines.status import EngineState
from tests.engines.snapshot_fixtures import ask, asleep, current, model
from tests.engines.standin import UNUSED
from tests.engines.support import QUICK, eventually
from tests.process_table import processes_with

pytestmark = pytest.mark.timeout(60)

OFTEN = replace(QUICK, inspect_interval_s=0.2)


def flip_page(host: EngineHost) -> None:
    """Change a page that the engine never reads. By its manifest the file is as it was identified.

    Stands for a disk or a memory that has changed a bit: inode, size and times are what they were.
    """
    snapshot = current(host)
    memory = snapshot.layout.memory
    with memory.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        start = pages.find(UNUSED[:8192])
        assert start > 0
        for at in range(start, start + 4096):
            pages[at] = 255 - pages[at]
    recorded = snapshot.manifest.files["memory"]
    status = memory.stat()
    same = FileIdentity(
        recorded.digest, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
    )
    changed = replace(snapshot.manifest, files={**snapshot.manifest.files, "memory": same})
    changed.write(snapshot.layout.folder / "manifest.json")
    assert host.snapshots is not None
    host.snapshots._current["model"] = replace(snapshot, manifest=changed)


async def test_a_flipped_page_ends_the_engines_of_the_snapshot(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Long enough for the wake: one that is due at once may find the page before the first answer.
    later = replace(QUICK, inspect_interval_s=5.0)
    async with asleep(run_dir, policy=later) as host:
        flip_page(host)
        condemned = current(host).id
        assert host.snapshots is not None
        host.snapshots._inspected[condemned] = time.monotonic()
        first, tier = await ask(host)
        assert tier is SleepTier.SNAPSHOT  # its canary cannot see the page
        assert await eventually(lambda: host.status()[0].state is not EngineState.READY, 20)
        assert "its snapshot is damaged: the content of memory has changed" in caplog.text
        second, tier = await ask(host)
        assert (second != first, tier) == (True, SleepTier.COLD)
        assert await eventually(lambda: current(host).id != condemned, 20)
        assert await ask(host) == (second, SleepTier.HOT)


async def test_a_snapshot_that_is_as_it_was_is_read_again_and_its_engines_serve_on(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asleep(run_dir, policy=OFTEN) as host:
        store = host.snapshots.store if host.snapshots else None
        assert store is not None
        read = []
        inspect = store.inspect

        async def counted(snapshot: object) -> str | None:
            read.append(await inspect(snapshot))  # type: ignore[arg-type]
            return read[-1]

        monkeypatch.setattr(store, "inspect", counted)
        first, _ = await ask(host)
        assert await eventually(lambda: len(read) >= 3, 20)
        assert set(read) == {None}
        assert await ask(host) == (first, SleepTier.HOT)
        await host.sleep("model", SleepTier.SNAPSHOT)
        shelf = host._actors["model"]._keeper
        assert shelf is not None
        inspecting = shelf._inspecting
        assert inspecting is not None
        assert await eventually(inspecting.done, 20)  # no engine uses the snapshot


async def test_without_an_interval_nothing_is_read(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asleep(run_dir, policy=replace(QUICK, inspect_interval_s=0.0)) as host:
        assert host.snapshots is not None
        flip_page(host)
        first, _ = await ask(host)
        await asyncio.sleep(0.5)
        assert await ask(host) == (first, SleepTier.HOT)


async def test_a_reader_that_is_killed_condemns_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def killed(*_: object) -> None:
        raise DigestFailed("the process that reads the snapshot ended with -9")

    monkeypatch.setattr("coldstart.snapshots.store.digests", killed)
    async with asleep(run_dir, policy=OFTEN) as host:
        first, _ = await ask(host)
        assert await eventually(lambda: "ended with -9" in caplog.text, 20)
        assert await ask(host) == (first, SleepTier.HOT)


async def test_a_projects_own_engine_of_the_snapshot_ends_too(run_dir: Path) -> None:
    async with asleep(run_dir, model(), policy=OFTEN) as host:
        async with host.acquire("model") as shared, host.acquire("model", pool="project") as mine:
            assert (shared.tier, mine.tier) == (SleepTier.SNAPSHOT, SleepTier.SNAPSHOT)
            assert shared.address != mine.address
            flip_page(host)
            assert await eventually(lambda: not host.status()[0].replicas, 20)
        assert (await ask(host))[1] is SleepTier.COLD


async def test_digests_are_those_of_the_manifest_and_a_missing_file_is_told(tmp_path: Path) -> None:
    for name, size in (("empty", 0), ("small", 5), ("large", 3_000_001)):
        (tmp_path / name).write_bytes(os.urandom(size))
    names = ["empty", "small", "large", "missing"]
    result = await digests(tmp_path / name for name in names)
    for name in names[:-1]:
        assert result[tmp_path / name] == FileIdentity.of(tmp_path / name).digest
    assert str(result[tmp_path / "missing"]) == "No such file or directory"


async def test_reading_is_slow_and_of_low_priority_and_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(8_000_000))
    task = asyncio.create_task(digests([large], bytes_per_s=1_000_000))
    await asyncio.sleep(0)

    def readers() -> list[int]:
        return [pid for pid in _children() if b"coldstart.snapshots.digester" in _command(pid)]

    assert await eventually(lambda: any(_nice(pid) == 19 for pid in readers()), 10)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert readers() == []
    assert not processes_with(tmp_path)


def _children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in _of(task)]


def _of(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _nice(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)
