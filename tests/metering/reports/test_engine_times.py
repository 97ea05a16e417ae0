"""Engine-seconds: added up, stored once, and shared without a rest."""

from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.ledger.service import open_ledger
from metering.reports.engine_times import EngineClock, EngineTime, Sample, shares, store_times, times_between
from metering.types import Outcome, Timings, Usage
from tests.metering.conftest import attempt

HOUR = 3_600
NOON = 1_704_067_200 + 12 * HOUR


class _Clock:
    def __init__(self) -> None:
        self.now = float(NOON - 10)

    def __call__(self) -> float:
        return self.now


def test_samples_are_added_up_by_hour() -> None:
    now = _Clock()
    clock = EngineClock(now)
    for wait, sample in (
        (0.0, Sample("m", waking=1)),
        (4.0, Sample("m", idle=1)),
        (3.5, Sample("m", busy=2, waking=1)),
        (10.0, Sample("m", busy=3)),
        (1.0, Sample("m")),
        (500.0, Sample("m", waking=1)),
        (-70.0, Sample("m")),
    ):
        now.now += wait
        clock.sample([sample])
    hour = NOON // HOUR
    assert clock.take() == {
        (hour - 1, "m"): EngineTime(busy_ms=5_000, idle_ms=3_500, waking_ms=4_000 + 2_500, wakes=2),
        (hour, "m"): EngineTime(busy_ms=15_000 + 3_000, waking_ms=7_500, wakes=1),
    }
    assert clock.take() == {}


@pytest.mark.parametrize("error_s", [366 * 24 * HOUR, -366 * 24 * HOUR, 30 * 24 * HOUR, -5])
def test_a_clock_that_is_put_right_changes_no_sum(error_s: int) -> None:
    """The clock was ahead or behind at the start, and is corrected while an engine is busy."""
    wall, steady = _Clock(), _Clock()
    wall.now += error_s
    clock = EngineClock(wall, steady)
    for step in range(20):
        if step == 10:
            wall.now -= error_s
        clock.sample([Sample("m", busy=1)])
        wall.now += 1.0
        steady.now += 1.0
    times = clock.take()
    assert sum(time.busy_ms for time in times.values()) == 19_000
    assert len(times) <= 4
    assert sum(time.busy_ms for (hour, _), time in times.items() if abs(hour - NOON // HOUR) <= 1) >= 9_000


async def test_time_is_stored_by_gateway_and_shared_by_use(database: AsyncEngine, tmp_path: Path) -> None:
    hour = NOON // HOUR
    async with open_ledger(str(database.url), database, tmp_path / "ledger") as ledger:
        for project, ms in (("proj_1", 100.0), ("proj_2", 200.0), ("proj_1", 300.0)):
            meter = ledger.open(attempt(model="m", project_id=project, started_at=NOON + 5))
            await meter.settle(Outcome.COMPLETED, Usage(1, 0, 1), Timings(queue_ms=7.0, total_ms=ms + 7))
    await store_times(database, "own_1", {(hour, "m"): EngineTime(1_000, 500, 101, 1)})
    await store_times(
        database, "own_1", {(hour, "m"): EngineTime(1, 0, 0, 0), (hour + 1, "m"): EngineTime(5, 6, 7, 1)}
    )
    await store_times(database, "own_2", {(hour, "m"): EngineTime(10, 0, 0, 0)})
    async with database.connect() as connection:
        assert await times_between(connection, NOON, NOON + HOUR) == {
            (hour, "m"): EngineTime(1_011, 500, 101, 1)
        }
        result = await shares(connection, NOON, NOON + 2 * HOUR)
    assert result[("m", None, None)] == EngineTime(5, 6, 7, 1)
    item, two = result[("m", "org-1", "proj_1")], result[("m", "org-1", "proj_2")]
    assert item.busy_ms + two.busy_ms == 1_011
    assert item.total_ms + two.total_ms == 1_612
    assert abs(item.busy_ms - 1_011 * 4 / 6) <= 1
