"""The journal takes over from the database, and what a crash left is brought there at the next start."""

import asyncio
import errno
import shutil
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metering.ledger.journal import Journal
from metering.ledger.service import Ledger
from metering.types import Outcome, Usage
from tenants.errors import StorageUnavailable
from tests.metering.conftest import Entries, Make, applied, attempt


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("the condition did not come true")


async def test_crash_is_settled_as_interrupted_from_the_checkpoint(
    make: Make, file: Path, entries: Entries
) -> None:
    crashed = make()
    await crashed.__aenter__()
    streaming, done = crashed.open(attempt()), crashed.open(attempt())
    await done.settle(Outcome.COMPLETED, Usage(1, 0, 1))
    streaming.observe(Usage(20, 8, 5))
    await asyncio.sleep(0.3)
    before = (await applied(crashed, entries))[done.attempt.id]
    # The kernel gives the lock of a process that was killed back, and the files stay.
    shutil.copytree(file.parent / "ledger", file.parent / "left")
    async with make("left") as ledger:
        entry = (await applied(ledger, entries))[streaming.attempt.id]
        assert (entry["outcome"], entry["input_tokens"], entry["output_tokens"]) == ("interrupted", 20, 5)
        assert entry["cached_tokens"] == 8
        assert entry["settled_ms"] is not None
        assert entries()[done.attempt.id] == before
        await streaming.settle(Outcome.COMPLETED, Usage(20, 8, 50))
        assert (await applied(crashed, entries))[streaming.attempt.id] == entry
    await crashed.__aexit__(None, None, None)


async def test_ledgers_that_share_a_database_leave_each_others_open_entries(
    make: Make, entries: Entries
) -> None:
    async with make() as ledger:
        streaming = ledger.open(attempt())
        streaming.observe(Usage(3, 0, 4))
        await applied(ledger, entries)
        for folder in ("ledger", "elsewhere"):
            async with make(folder) as other:
                beside = other.open(attempt())
                await beside.settle(Outcome.COMPLETED, Usage(1, 0, 1))
                assert (await applied(other, entries))[streaming.attempt.id]["outcome"] is None
        await streaming.settle(Outcome.COMPLETED, Usage(3, 0, 9))
        entry = (await applied(ledger, entries))[streaming.attempt.id]
    assert (entry["outcome"], entry["output_tokens"]) == ("completed", 9)


async def test_journal_of_an_ended_process_is_recovered_by_its_neighbour(
    make: Make, file: Path, entries: Entries
) -> None:
    first, second = make(), make()
    await first.__aenter__()
    await second.__aenter__()
    left = second.open(attempt())
    left.observe(Usage(2, 0, 6))
    await asyncio.sleep(0.3)
    await applied(second, entries)
    copied = file.parent / "copied"
    shutil.copytree(file.parent / "ledger", copied)
    async with make("copied"):
        assert entries()[left.attempt.id]["outcome"] == "interrupted"
        assert entries()[left.attempt.id]["output_tokens"] == 6
        assert not list((copied / "1").glob("*.journal"))
    await second.__aexit__(None, None, None)
    await first.__aexit__(None, None, None)


async def test_journal_takes_over_while_the_database_is_locked(
    ledger: Ledger, entries: Entries, file: Path
) -> None:
    streaming = ledger.open(attempt())
    await streaming.opened()
    await applied(ledger, entries)
    blocker = sqlite3.connect(file, isolation_level=None)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        await streaming.settle(Outcome.COMPLETED, Usage(4, 0, 4))
        meters = [ledger.open(attempt()) for _ in range(200)]
        await asyncio.gather(*(meter.settle(Outcome.COMPLETED, Usage(1, 0, 2)) for meter in meters))
        assert time.monotonic() - begun < 1.0
        assert not await ledger.applied()
        assert entries()[streaming.attempt.id]["outcome"] is None
        blocker.execute("ROLLBACK")
    finally:
        blocker.close()
    stored: dict[str, Any] = {}
    while len(stored) < 201:
        assert time.monotonic() - begun < 10
        stored = entries()
        await asyncio.sleep(0.01)
    assert {entry["outcome"] for entry in stored.values()} == {"completed"}
    assert stored[streaming.attempt.id]["output_tokens"] == 4


async def test_database_that_stays_away_leaves_the_journal_to_the_next_start(
    make: Make, entries: Entries, file: Path
) -> None:
    blocker = sqlite3.connect(file, isolation_level=None)
    try:
        async with make() as ledger:
            done = ledger.open(attempt())
            await done.opened()
            blocker.execute("BEGIN IMMEDIATE")
            await done.settle(Outcome.COMPLETED, Usage(3, 0, 33))
            streaming = ledger.open(attempt())
            streaming.observe(Usage(7, 0, 1))
    finally:
        blocker.close()
    assert done.attempt.id not in entries() or entries()[done.attempt.id]["outcome"] is None
    for _ in range(2):
        async with make():
            stored = entries()
            assert stored[done.attempt.id]["output_tokens"] == 33
            assert (
                stored[streaming.attempt.id]["outcome"],
                stored[streaming.attempt.id]["output_tokens"],
            ) == (
                "interrupted",
                1,
            )
            assert len(stored) == 2


async def test_full_journal_refuses_openings_keeps_settlements_and_recovers(
    make: Make, entries: Entries, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "metering.ledger.service.Journal", partial(Journal, max_bytes=65_536, segment_bytes=16_384)
    )
    async with make() as ledger:
        streaming = [ledger.open(attempt()) for _ in range(5)]
        await applied(ledger, entries)
        blocker = sqlite3.connect(file, isolation_level=None)
        try:
            blocker.execute("BEGIN IMMEDIATE")
            opened = 0
            with pytest.raises(StorageUnavailable):
                for _ in range(5_000):
                    await ledger.open(attempt()).settle(Outcome.COMPLETED)
                    opened += 1
            assert 50 < opened < 400
            for meter in streaming:
                await meter.settle(Outcome.COMPLETED, Usage(1, 0, 5))
            blocker.execute("ROLLBACK")
        finally:
            blocker.close()
        for _ in range(500):
            if ledger.accepts:
                break
            await asyncio.sleep(0.01)
        await ledger.open(attempt()).settle(Outcome.COMPLETED)
        stored = await applied(ledger, entries)
    assert len(stored) == opened + 6
    assert {stored[meter.attempt.id]["output_tokens"] for meter in streaming} == {5}


async def test_disk_of_the_journal_that_fails_refuses_openings_and_keeps_settlements(
    ledger: Ledger, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming = ledger.open(attempt())
    await streaming.opened()
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", _no_space)
        with pytest.raises(StorageUnavailable):
            await ledger.open(attempt()).opened()
        with pytest.raises(StorageUnavailable):
            await streaming.settle(Outcome.COMPLETED, Usage(4, 0, 44))
        with pytest.raises(StorageUnavailable):
            ledger.open(attempt())
    await _until(lambda: ledger.accepts)
    stored = await applied(ledger, entries)
    assert stored[streaming.attempt.id]["output_tokens"] == 44
    assert len(stored) == 1


async def test_settlement_lost_for_good_is_logged_with_its_tokens(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        async with make() as ledger:
            meter = ledger.open(attempt())
            await meter.opened()
            patch.setattr("os.pwrite", _no_space)
            meter.observe(Usage(3, 0, 33))
            meter.finish(Outcome.COMPLETED)
    lost = [record for record in caplog.records if "was not stored" in record.getMessage()]
    assert [record.__dict__["fields"]["output_tokens"] for record in lost] == [33]


def _no_space(_descriptor: int, _data: bytes, _offset: int) -> None:
    raise OSError(errno.ENOSPC, "no space left on the device")
