"""Every attempt opened once and settled once, on both writers."""

import asyncio
import logging
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.database import open_database
from metering.errors import InvalidEntry
from metering.ledger import service as ledger_module
from metering.ledger import writer
from metering.ledger.service import Ledger, open_ledger
from metering.ledger.sql_writer import SqlWriter
from metering.ledger.sqlite_writer import SqliteWriter
from metering.types import Outcome, Timings, Usage
from tenants.errors import StorageUnavailable
from tests.metering.conftest import Entries, Make, applied, attempt


async def test_entry_is_open_and_then_settled(ledger: Ledger, entries: Entries) -> None:
    created = attempt(
        user_id="u",
        adapter="ft:x",
        batch=True,
        service_tier="flex",
        started_at=1_700_000_000.5,
        request_id="r",
    )
    meter = ledger.open(created)
    await meter.opened()
    opened = (await applied(ledger, entries))[created.id]
    assert opened["outcome"] is None
    assert opened["started_ms"] == 1_700_000_000_500
    timings = Timings(queue_ms=1.5, wake_ms=2.5, ttft_ms=3.5, total_ms=4.5, tier="cold")
    await meter.settle(Outcome.COMPLETED, Usage(10, 4, 7), timings, 200)
    settled = (await applied(ledger, entries))[created.id]
    assert settled.pop("owner").startswith("own_")
    assert settled.pop("settled_ms") >= opened["started_ms"]
    assert settled == {
        "id": created.id,
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
    created = attempt()
    first = ledger.open(created)
    await first.settle(Outcome.COMPLETED, Usage(5, 0, 5))
    again = ledger.open(created)
    await again.opened()
    await again.settle(Outcome.FAILED, Usage(100, 0, 100))
    assert list(await applied(ledger, entries)) == [created.id]
    assert (await applied(ledger, entries))[created.id]["output_tokens"] == 5


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


async def test_full_queue_refuses_openings(make: Make, file: Path, entries: Entries) -> None:
    async with make(max_queued=10) as ledger:
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


async def test_urls_choose_their_writer(file: Path, database: AsyncEngine) -> None:
    by_thread = open_ledger(f"sqlite+aiosqlite:///{file}", database, file.parent)
    by_sql = open_ledger("sqlite+aiosqlite:///:memory:", database, file.parent)
    assert isinstance(by_thread._database, SqliteWriter)
    assert isinstance(by_sql._database, SqlWriter)
    assert ledger_module.CHECKPOINT_S < 0.25
    assert writer.RETRY_S <= 0.5
