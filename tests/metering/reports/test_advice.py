"""The cost advisor: by hand, and against every setting tried out."""

import random
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.ledger.service import open_ledger
from metering.reports.advice import PriceAssumptions, Work, advise, best_keep_warm, work_between
from metering.reports.engine_times import EngineTime, store_times
from metering.types import Outcome, Timings, Usage
from tests.metering.conftest import attempt

HOUR = 3_600
NOON = 1_704_067_200 + 12 * HOUR


def test_costs_and_where_they_cross() -> None:
    time = EngineTime(busy_ms=HOUR * 1000, idle_ms=2 * HOUR * 1000, waking_ms=HOUR * 1000, wakes=9)
    work = Work(model="m", hours=10.0, time=time, requests=5, input_tokens=3_000_000, output_tokens=1_000_000)
    result = advise(
        work, PriceAssumptions(hardware_hour=2.0, reserved_hour=0.5, hosted_input=1.0, hosted_output=5.0)
    )
    assert result.utilisation == pytest.approx(0.1)
    assert (result.as_run, result.always_on, result.hosted) == (8.0, 20.0, 8.0)
    assert result.per_million(result.as_run) == 2.0
    assert (result.wake_share, result.idle_share) == (0.25, 0.5)
    assert result.reserved_above == 0.25  # a quarter of the price from a quarter of the time on
    assert result.own_above == 0.25  # its hour costs 2, and does hosted work of 8 while it is busy


def test_nothing_is_said_of_nothing() -> None:
    result = advise(
        Work(model="m", hours=1.0, time=EngineTime(), requests=0, input_tokens=0, output_tokens=0),
        PriceAssumptions(hardware_hour=1.0),
    )
    assert result.per_million(result.as_run) is None
    assert (result.wake_share, result.keep_warm, result.hosted, result.reserved_above) == (
        None,
        None,
        None,
        None,
    )


def _cost(gaps: list[float], wake_s: float, keep_s: float) -> float:
    return sum(gap if gap <= keep_s else keep_s + wake_s for gap in gaps)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_keep_warm_setting_costs_less(seed: int) -> None:
    chance = random.Random(seed)
    gaps = [chance.expovariate(1 / chance.choice([1, 30, 600])) for _ in range(chance.randrange(1, 60))]
    wake_s = chance.uniform(0, 60)
    best = best_keep_warm(gaps, wake_s)
    assert best is not None
    cost = best.idle_s + best.wakes * wake_s
    assert cost == pytest.approx(_cost(gaps, wake_s, best.seconds))
    for keep_s in [0.0, *gaps, *[chance.uniform(0, 1_000) for _ in range(200)]]:
        assert cost <= _cost(gaps, wake_s, keep_s) + 1e-6


async def test_work_is_read_from_the_ledger(database: AsyncEngine, tmp_path: Path) -> None:
    async with open_ledger(str(database.url), database, tmp_path / "ledger") as ledger:
        for at, total_ms, organization in (
            (0, 2_000.0, "org-1"),
            (1, 500.0, "org-2"),
            (12, 1_000.0, "org-1"),
        ):
            meter = ledger.open(attempt(model="m", started_at=NOON + at, organization_id=organization))
            timings = Timings(total_ms=total_ms, wake_ms=400.0 if at else 0.0, tier="snapshot")
            await meter.settle(Outcome.COMPLETED, Usage(10, 0, 5), timings)
    await store_times(database, "own_1", {(NOON // HOUR, "m"): EngineTime(3_000, 10_000, 800, 2)})
    async with database.connect() as connection:
        (work,) = await work_between(connection, NOON, NOON + HOUR)
    assert (work.model, work.hours, work.requests, work.tokens) == ("m", 1.0, 3, 45)
    assert work.time == EngineTime(3_000, 10_000, 800, 2)
    assert list(work.gaps_s) == [10.0]
    assert work.wake_s == pytest.approx(0.4)
