"""Every attempt opened once and settled once, on both writers."""

import asyncio
import errno
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database import open_database
from metering import ledger as ledger_module
from metering import sqlite_writer, writers
from metering.errors import InvalidEntry, StorageUnavailable
from metering.journal import Journal
from metering.ledger import Ledger, open_ledger
from metering.sql_writer import SqlWriter
from metering.sqlite_writer import SqliteWriter
from metering.types import Outcome, Timings, Usage
from tests.metering.conftest import Entries, applied, attempt

Make = Callable[..., Ledger]


@pytest.fixture(params=["thread", "sqlalchemy"])
async def make(
    request: pytest.FixtureRequest, file: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Make]:
    """Makes ledgers on the file, whose writer gives up on a lock after 50 ms."""
    monkeypatch.setattr(sqlite_writer, "BUSY_TIMEOUT_MS", 50)
    database = open_database(f"sqlite+aiosqlite:///{file}")
    event.listen(
        database.sync_engine, "connect", lambda one, _: one.execute("PRAGMA busy_timeout = 50").close()
    )
    if request.param == "thread":
        yield lambda folder="ledger": Ledger(SqliteWriter(str(file)), file.parent / folder)
    else:
        yield lambda folder="ledger": Ledger(SqlWriter(database), file.parent / folder)
    await database.dispose()


@pytest.fixture
async def ledger(make: Make) -> AsyncIterator[Ledger]:
    async with make() as opened:
        yield opened


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("the condition did not come true")


async def test_entry_is_open_and_then_settled(ledger: Ledger, entries: Entries) -> None:
    made = attempt(
        user_id="u",
        adapter="ft:x",
        batch=True,
        service_tier="flex",
        started_at=1_700_000_000.5,
        request_id="r",
    )
    meter = ledger.open(made)
    await meter.opened()
    opened = (await applied(ledger, entries))[made.id]
    assert opened["outcome"] is None
    assert opened["started_ms"] == 1_700_000_000_500
    timings = Timings(queue_ms=1.5, wake_ms=2.5, ttft_ms=3.5, total_ms=4.5, tier="cold")
    await meter.settle(Outcome.COMPLETED, Usage(10, 4, 7), timings, 200)
    settled = (await applied(ledger, entries))[made.id]
    assert settled.pop("owner").startswith("own_")
    assert settled.pop("settled_ms") >= opened["started_ms"]
    assert settled == {
        "id": made.id,
        "request_id": "r",
        "organization_id": "org-1",
        "project_id": "proj_1",
        "api_key_id": "key_1",
        "user_id": "u",
        "model": "smollm2-135m",
        "adapter": "ft:x",
        "operation": "chat",
        "batch": 1,
        "service_tier": "flex",
        "started_ms": 1_700_000_000_500,
        "input_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 7,
        "estimated": 0,
        "outcome": "completed",
        "status": 200,
        "tier": "cold",
        "queue_ms": 1.5,
        "wake_ms": 2.5,
        "ttft_ms": 3.5,
        "total_ms": 4.5,
        "engine_ms": 3,
        "input_cost": 0,
        "cached_cost": 0,
        "output_cost": 0,
        "engine_cost": 0,
    }


async def test_first_settlement_stands(ledger: Ledger, entries: Entries) -> None:
    meter = ledger.open(attempt())
    await asyncio.gather(
        meter.settle(Outcome.COMPLETED, Usage(1, 0, 2)), meter.settle(Outcome.FAILED, Usage(9, 9, 9))
    )
    meter.finish(Outcome.ABORTED)
    meter.observe(Usage(8, 8, 8))
    await meter.settle(Outcome.ABORTED)
    entry = (await applied(ledger, entries))[meter.attempt.id]
    assert (entry["outcome"], entry["input_tokens"], entry["output_tokens"]) == ("completed", 1, 2)
    assert meter.settled
    assert meter.usage == Usage(1, 0, 2)


async def test_same_attempt_opened_and_settled_twice_counts_once(ledger: Ledger, entries: Entries) -> None:
    made = attempt()
    first = ledger.open(made)
    await first.settle(Outcome.COMPLETED, Usage(5, 0, 5))
    again = ledger.open(made)
    await again.opened()
    await again.settle(Outcome.FAILED, Usage(100, 0, 100))
    assert list(await applied(ledger, entries)) == [made.id]
    assert (await applied(ledger, entries))[made.id]["output_tokens"] == 5


async def test_settlement_without_usage_takes_what_was_observed(ledger: Ledger, entries: Entries) -> None:
    meter = ledger.open(attempt())
    meter.observe(Usage(3, 0, 1))
    meter.observe(Usage(3, 0, 2, estimated=True))
    await meter.settle(Outcome.ABORTED, status=499)
    entry = (await applied(ledger, entries))[meter.attempt.id]
    assert (entry["input_tokens"], entry["output_tokens"], entry["estimated"]) == (3, 2, 1)
    assert (entry["outcome"], entry["status"]) == ("aborted", 499)


async def test_progress_is_checkpointed_within_a_quarter_of_a_second(
    ledger: Ledger, entries: Entries
) -> None:
    meters = [ledger.open(attempt()) for _ in range(50)]
    await meters[-1].opened()
    for tokens in (1, 2):
        for meter in meters:
            meter.observe(Usage(10, 0, tokens))
        await asyncio.sleep(0.25)
        stored = await applied(ledger, entries)
        assert [stored[meter.attempt.id]["output_tokens"] for meter in meters] == [tokens] * 50
        assert {entry["outcome"] for entry in stored.values()} == {None}


async def test_meter_that_does_not_change_is_not_written_again(ledger: Ledger, file: Path) -> None:
    meter = ledger.open(attempt())
    meter.observe(Usage(1, 0, 1))
    await asyncio.sleep(0.3)
    await ledger.applied()
    watcher = sqlite3.connect(file)
    try:
        before = watcher.execute("PRAGMA data_version").fetchone()
        meter.observe(Usage(1, 0, 1))
        await asyncio.sleep(0.5)
        assert watcher.execute("PRAGMA data_version").fetchone() == before
    finally:
        watcher.close()


async def test_entry_that_is_opened_and_settled_at_once_is_written_once(
    ledger: Ledger, entries: Entries, file: Path
) -> None:
    await ledger.open(attempt()).settle(Outcome.COMPLETED)
    await applied(ledger, entries)
    watcher = sqlite3.connect(file)
    versions = set()
    try:
        meters = [ledger.open(attempt()) for _ in range(100)]
        await meters[-1].opened()
        for meter in meters:
            meter.finish(Outcome.COMPLETED)
        while len(stored := entries()) < 101:
            versions.add(watcher.execute("PRAGMA data_version").fetchone())
            await asyncio.sleep(0.001)
        versions.add(watcher.execute("PRAGMA data_version").fetchone())
    finally:
        watcher.close()
    assert len(versions) == 2
    assert {entry["outcome"] for entry in stored.values()} == {"completed"}


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


async def test_leaving_makes_everything_durable(make: Make, entries: Entries) -> None:
    async with make() as ledger:
        meters = [ledger.open(attempt()) for _ in range(500)]
        for meter in meters[:400]:
            meter.finish(Outcome.COMPLETED)
        meters[450].observe(Usage(1, 0, 3))
    stored = entries()
    assert len(stored) == 500
    outcomes = [stored[meter.attempt.id]["outcome"] for meter in meters]
    assert outcomes == ["completed"] * 400 + ["interrupted"] * 100
    assert stored[meters[450].attempt.id]["output_tokens"] == 3


async def test_closed_ledger_refuses_at_once(make: Make) -> None:
    async with make() as ledger:
        meter = ledger.open(attempt())
        late = ledger.open(attempt())
        await meter.settle(Outcome.COMPLETED)
    with pytest.raises(StorageUnavailable):
        ledger.open(attempt())
    await late.settle(Outcome.COMPLETED)


async def test_cancelling_the_wait_does_not_undo_the_settlement(ledger: Ledger, entries: Entries) -> None:
    meter = ledger.open(attempt())
    waiting = asyncio.create_task(meter.settle(Outcome.COMPLETED, Usage(2, 0, 2)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert meter.settled
    await meter.settle(Outcome.ABORTED)
    assert (await applied(ledger, entries))[meter.attempt.id]["outcome"] == "completed"


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


@pytest.mark.parametrize("usage", [Usage(2**63, 0, 0), Usage(0, 0, 2**70)])
async def test_entry_that_cannot_be_stored_takes_no_other_with_it(
    ledger: Ledger, entries: Entries, usage: Usage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "torpor.ledger")
    good, bad = [ledger.open(attempt()) for _ in range(5)], ledger.open(attempt())
    odd = ledger.open(attempt(user_id="\ud800"))
    settling = [meter.settle(Outcome.COMPLETED, Usage(1, 0, 1)) for meter in good]
    results = await asyncio.gather(
        bad.settle(Outcome.COMPLETED, usage),
        odd.settle(Outcome.COMPLETED),
        *settling,
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [InvalidEntry, InvalidEntry, *[type(None)] * 5]
    assert {(await applied(ledger, entries))[meter.attempt.id]["outcome"] for meter in good} == {"completed"}
    await ledger.open(attempt()).settle(Outcome.COMPLETED)


async def test_full_queue_refuses_openings(
    make: Make, file: Path, monkeypatch: pytest.MonkeyPatch, entries: Entries
) -> None:
    monkeypatch.setattr("metering.recorder.MAX_QUEUED", 10)
    async with make() as ledger:
        meters = [ledger.open(attempt()) for _ in range(10)]
        with pytest.raises(StorageUnavailable):
            ledger.open(attempt())
        for meter in meters:
            await meter.opened()
        ledger.open(attempt())
        assert len(await applied(ledger, entries)) == 11


async def test_ledger_that_cannot_be_read_does_not_open(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'none.db'}"
    database, folder = open_database(url), tmp_path / "ledger"
    try:
        for ledger in (open_ledger(url, database, folder), Ledger(SqlWriter(database), folder)):
            with pytest.raises(StorageUnavailable):
                await ledger.__aenter__()
    finally:
        await database.dispose()
    assert threading.active_count() < 20


async def test_full_journal_refuses_openings_keeps_settlements_and_recovers(
    make: Make, entries: Entries, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metering.ledger.Journal", partial(Journal, max_bytes=65_536, segment_bytes=16_384))
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
        patch.setattr("os.fdatasync", _no_space)
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
            patch.setattr("os.fdatasync", _no_space)
            meter.observe(Usage(3, 0, 33))
            meter.finish(Outcome.COMPLETED)
    lost = [record for record in caplog.records if "was not stored" in record.getMessage()]
    assert [record.__dict__["fields"]["output_tokens"] for record in lost] == [33]


def _no_space(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "no space left on the device")


async def test_urls_choose_their_writer(file: Path, database: AsyncEngine) -> None:
    by_thread = open_ledger(f"sqlite+aiosqlite:///{file}", database, file.parent)
    by_sql = open_ledger("sqlite+aiosqlite:///:memory:", database, file.parent)
    assert isinstance(by_thread._database, SqliteWriter)
    assert isinstance(by_sql._database, SqlWriter)
    assert ledger_module.CHECKPOINT_S < 0.25
    assert writers.RETRY_S <= 0.5
