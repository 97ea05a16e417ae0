"""An opening that waits for its settlement: one write where the attempt is soon over, and none is lost."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from metering.ledger.entries import OUTCOME
from metering.ledger.journal import Journal, Row
from metering.ledger.recorder import PATIENCE_S
from metering.ledger.service import Ledger
from metering.types import Outcome, Usage
from tests.metering.conftest import Entries, Make, applied, attempt

Journalled = list[list[str | None]]


@pytest.fixture
def journalled(monkeypatch: pytest.MonkeyPatch) -> Journalled:
    """The outcomes of the rows of each group that is made durable."""
    groups: Journalled = []
    append = Journal.append

    def told(journal: Journal, rows: Sequence[Row]) -> int:
        groups.append([row[OUTCOME] for row in rows])
        return append(journal, rows)

    monkeypatch.setattr(Journal, "append", told)
    return groups


async def test_what_is_soon_over_is_written_once(
    journalled: Journalled, ledger: Ledger, entries: Entries
) -> None:
    meter = ledger.open(attempt(), patient=True)
    await asyncio.sleep(0)
    await meter.settle(Outcome.COMPLETED, Usage(3, 0, 4))
    assert journalled == [["completed"]]
    await meter.opened()
    assert (await applied(ledger, entries))[meter.attempt.id]["output_tokens"] == 4
    assert ledger.backlog == 0


async def test_what_goes_on_is_open_soon(journalled: Journalled, ledger: Ledger, entries: Entries) -> None:
    meters = [ledger.open(attempt(), patient=True) for _ in range(3)]
    assert ledger.backlog == 3
    began = time.monotonic()
    while not journalled:
        await asyncio.sleep(0.01)
    assert time.monotonic() - began < 2 * PATIENCE_S + 1
    assert journalled == [[None] * 3]
    result = await applied(ledger, entries)
    assert [result[meter.attempt.id]["outcome"] for meter in meters] == [None] * 3
    for meter in meters:
        await meter.settle(Outcome.ABORTED, Usage(1, 0, 1))
    assert {entry["outcome"] for entry in (await applied(ledger, entries)).values()} == {"aborted"}


async def test_who_waits_for_the_opening_does_not_wait_for_the_settlement(
    journalled: Journalled, ledger: Ledger
) -> None:
    meter = ledger.open(attempt(), patient=True)
    async with asyncio.timeout(PATIENCE_S / 2):
        await meter.opened()
    assert journalled == [[None]]
    await meter.settle(Outcome.COMPLETED)


async def test_a_checkpoint_takes_its_place(ledger: Ledger, entries: Entries) -> None:
    meter = ledger.open(attempt(), patient=True)
    meter.observe(Usage(3, 0, 2))
    ledger._checkpoint()
    await meter.opened()
    assert (await applied(ledger, entries))[meter.attempt.id]["output_tokens"] == 2
    await asyncio.sleep(2 * PATIENCE_S)
    assert (await applied(ledger, entries))[meter.attempt.id]["output_tokens"] == 2
    await meter.settle(Outcome.COMPLETED, Usage(3, 0, 5))


async def test_a_crash_leaves_it_open_once_it_had_time(make: Make, file: Path, entries: Entries) -> None:
    crashed = make()
    await crashed.__aenter__()
    meter = crashed.open(attempt(), patient=True)
    await asyncio.sleep(2 * PATIENCE_S)
    shutil.copytree(file.parent / "ledger", file.parent / "left")
    async with make("left") as ledger:
        assert (await applied(ledger, entries))[meter.attempt.id]["outcome"] == "interrupted"
    await crashed.__aexit__(None, None, None)


async def test_an_end_writes_what_waits(make: Make, entries: Entries) -> None:
    async with make() as ledger:
        meters = [ledger.open(attempt(), patient=True) for _ in range(3)]
        await meters[0].settle(Outcome.COMPLETED, Usage(1, 0, 1))
    result = entries()
    outcomes = [result[meter.attempt.id]["outcome"] for meter in meters]
    assert outcomes == ["completed", "interrupted", "interrupted"]
