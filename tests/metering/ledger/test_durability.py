"""How long the ledger says that it is behind."""

import asyncio
import sqlite3
import time
from pathlib import Path

from metering.ledger.durability import Lag
from metering.ledger.service import Ledger
from metering.types import Outcome, Usage
from tests.metering.conftest import attempt


def test_who_follows_at_once_is_not_behind() -> None:
    lag = Lag()
    assert lag.seconds(0.0) == 0.0
    lag.leads(1, 10.0)
    assert lag.seconds(10.5) == 0.5
    lag.follows(1, 11.0)
    assert lag.seconds(50.0) == 0.0


def test_lag_grows_while_nobody_follows() -> None:
    lag = Lag()
    for second in range(100):
        lag.leads(second, float(second))
    assert lag.seconds(100.0) == 100.0
    lag.follows(0, 100.0)
    assert lag.seconds(100.0) == 100.0, "the rest may be as old"


def test_lag_is_never_less_than_the_age_of_the_oldest_and_a_round_more_at_most() -> None:
    """A follower that is always 7 numbers behind, one number a second."""
    lag = Lag()
    for now in range(100):
        lag.leads(now + 1, float(now))
        if now >= 7:
            lag.follows(now + 1 - 7, float(now))
            assert 6.0 <= lag.seconds(float(now)) <= 14.0
    lag.follows(100, 100.0)
    assert lag.seconds(101.0) == 0.0


async def test_the_ledgers_lag_grows_while_the_database_is_locked(ledger: Ledger, file: Path) -> None:
    meter = ledger.open(attempt())
    await meter.opened()
    assert await ledger.applied()
    assert ledger.lags_s == {"journal": 0.0, "database": 0.0}
    blocker = sqlite3.connect(file)
    try:
        blocker.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        await meter.settle(Outcome.COMPLETED, Usage(5, 0, 9))
        durable = time.monotonic()
        assert ledger.lags_s["journal"] == 0.0, "it is durable"
        await asyncio.sleep(0.3)
        elapsed = time.monotonic()
        lag_s = ledger.lags_s["database"]
        assert elapsed - durable - 0.01 <= lag_s <= time.monotonic() - began
    finally:
        blocker.rollback()
        blocker.close()
    async with asyncio.timeout(10):
        while not await ledger.applied():
            pass
    assert ledger.lags_s["database"] == 0.0
