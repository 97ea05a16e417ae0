"""Prices are exact, and what has been spent is read from the ledger as it would have been settled."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.ledger.service import open_ledger
from metering.prices import DOLLAR, FREE, Price, PriceEntry, PriceList, parse_price
from metering.reports.spending import spent_since
from metering.types import Outcome, Usage
from tests.metering.conftest import attempt

DAY = datetime(2026, 5, 10, tzinfo=UTC).timestamp()


def test_a_price_is_a_whole_number_of_picodollars_a_token() -> None:
    assert parse_price(Decimal("0.15")) == 150_000
    assert parse_price(Decimal("0.000001")) == 1
    assert parse_price(Decimal("1000000")) == DOLLAR
    price = Price(150_000, 75_000, 600_000)
    assert price.cost(Usage(1_000_000, 0, 0)) == DOLLAR * 15 // 100
    assert price.cost(Usage(10, 4, 3)) == 6 * 150_000 + 4 * 75_000 + 3 * 600_000
    assert price.cost(Usage(10, 11, 0)) == 10 * 75_000, "an engine that reports more cached than there were"


@pytest.mark.parametrize("text", ["-1", "0.0000001", "1000000.000001", "NaN", "Infinity", "-Infinity"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_price(Decimal(text))


@given(
    st.tuples(*[st.integers(0, 10**9)] * 3),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
def test_no_request_costs_more_than_was_set_aside(
    rates: tuple[int, int, int], uncached: int, cached: int, output: int
) -> None:
    price = Price(*rates)
    assert price.cost(Usage(uncached + cached, cached, output)) <= price.most(uncached + cached, output)


def test_the_latest_price_that_has_come_holds() -> None:
    old, new, mine = Price(1), Price(2), Price(3)
    prices = PriceList(
        [
            PriceEntry(model="m", price=old),
            PriceEntry(model="m", price=new, since=date(2026, 5, 10)),
            PriceEntry(model="m", price=mine, adapter="a", since=date(2026, 5, 11)),
        ]
    )
    assert prices.price("m", None, DAY - 0.001) == old
    assert prices.price("m", None, DAY) == new
    assert prices.price("m", "a", DAY) == new
    assert prices.price("m", "a", DAY + 86400) == mine
    assert prices.price("m", "b", DAY + 86400) == new
    assert prices.price("other", None, DAY) == FREE
    assert PriceList().price("m", None, DAY) == FREE


Spent = Sequence[tuple[str, str, float, Usage]]


async def test_what_was_spent_is_read_from_the_ledger(database: AsyncEngine, tmp_path: Path) -> None:
    """By project and organization, at the price of the day, from that second on, whatever the outcome."""
    prices = PriceList(
        [
            PriceEntry(model="smollm2-135m", price=Price(10, 1, 100)),
            PriceEntry(model="smollm2-135m", price=Price(20, 2, 200), since=date(2026, 5, 10)),
        ]
    )
    request: Spent = [
        ("org-1", "proj_1", DAY - 1, Usage(5, 2, 3)),
        ("org-1", "proj_1", DAY, Usage(5, 2, 3)),
        ("org-1", "proj_2", DAY + 1, Usage(1, 0, 0)),
        ("org-2", "proj_3", DAY + 86400, Usage(0, 0, 7)),
        ("org-0", "proj_0", DAY - 90000, Usage(1000, 0, 1000)),
    ]
    async with open_ledger(str(database.url), database, tmp_path / "ledger", prices) as ledger:
        for organization_id, project_id, at, usage in request:
            meter = ledger.open(
                attempt(organization_id=organization_id, project_id=project_id, started_at=at)
            )
            await meter.settle(Outcome.ABORTED, usage)
        waiting = ledger.open(attempt(started_at=DAY, model="smollm2-135m"))
        await waiting.opened()
        assert await ledger.applied()
        assert await spent_since(database, int(DAY) - 1) == {
            "proj_1": (30 + 2 + 300) + (60 + 4 + 600),
            "proj_2": 20,
            "org-1": (30 + 2 + 300) + (60 + 4 + 600) + 20,
            "proj_3": 1400,
            "org-2": 1400,
        }
        assert await spent_since(database, int(DAY)) == {
            "proj_1": 664, "proj_2": 20, "org-1": 684, "proj_3": 1400, "org-2": 1400,
        }  # fmt: skip
        await _check_that_spans_add_up(database, [at for *_, at, _ in request])


async def _check_that_spans_add_up(database: AsyncEngine, times: Sequence[float]) -> None:
    """What began before a time, and what began then or later, is all: at edges of days and between them."""
    first, last = int(min(times)) - 1, int(max(times)) + 2
    everything = await spent_since(database, first)
    for at in sorted(
        {int(DAY), int(DAY) + 1, int(DAY) - 1, *(int(time) + more for time in times for more in (0, 1))}
    ):
        before = await spent_since(database, first, until=at)
        after = await spent_since(database, at, until=last)
        parts = Counter(before)
        parts.update(after)
        assert {name: amount for name, amount in parts.items() if amount} == everything
    assert await spent_since(database, last, until=last + 40 * 86_400) == {}
