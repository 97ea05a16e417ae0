"""Cost reports: exact, the same over every grouping, and never changed by a later price."""

import itertools
import random
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from openai.types.admin.organization import UsageCostsResponse
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.errors import InvalidQuery
from metering.ledger.service import open_ledger
from metering.prices import Price, PriceEntry, PriceList
from metering.reports.costs import GROUPINGS, CostReports, parse_costs
from metering.types import Attempt, Operation, Outcome, Timings, Usage
from tests.metering.conftest import attempt

DAY = 86_400
MONDAY = 1_704_067_200
SPAN = [("start_time", str(MONDAY)), ("end_time", str(MONDAY + 3 * DAY))]
PRICES = PriceList(
    [
        PriceEntry(model="smollm2-135m", price=Price(1_000_003, 500_001, 2_000_007, 36 * 10**11)),
        PriceEntry(model="smollm2-135m", price=Price(3, 1, 7), since=date(2024, 1, 2)),
        PriceEntry(model="smollm2-135m", adapter="ft:a", price=Price(11, 0, 13)),
        PriceEntry(model="minilm", price=Price(10**11)),
    ]
)


@pytest.fixture
def costs(database: AsyncEngine) -> CostReports:
    return CostReports(database, clock=lambda: float(MONDAY + 40 * DAY))


async def _settle(
    database: AsyncEngine,
    folder: Path,
    settled: list[tuple[Attempt, Usage, Timings | None]],
    prices: PriceList = PRICES,
) -> None:
    async with open_ledger(str(database.url), database, folder, prices) as ledger:
        for item, usage, timings in settled:
            await ledger.open(item).settle(Outcome.COMPLETED, usage, timings, 200)


async def test_line_items_are_what_the_official_client_parses(
    database: AsyncEngine, costs: CostReports, tmp_path: Path
) -> None:
    timings = Timings(queue_ms=500.0, total_ms=2_750.0)
    await _settle(
        database,
        tmp_path / "ledger",
        [
            (attempt(started_at=MONDAY + 5), Usage(100, 40, 10), timings),
            (attempt(started_at=MONDAY + DAY), Usage(100, 40, 10), None),
            (attempt(started_at=MONDAY + 7, adapter="ft:a"), Usage(1, 0, 1), None),
        ],
    )
    answer = await costs.report(parse_costs("org-1", [*SPAN, ("group_by[]", "line_item")]))
    days = [
        [
            (item["line_item"], item["amount"]["value"], item["quantity"], item["quantity_unit"])
            for item in bucket["results"]
        ]
        for bucket in answer["data"]
    ]
    pico = Decimal(10) ** -12
    assert sorted(days[0]) == [
        ("ft:a, input_tokens", 11 * pico, 1, "tokens"),
        ("ft:a, output_tokens", 13 * pico, 1, "tokens"),
        ("smollm2-135m, cached_input_tokens", 40 * 500_001 * pico, 40, "tokens"),
        ("smollm2-135m, engine_seconds", Decimal("0.00225"), Decimal("2.25"), "duration_seconds"),
        ("smollm2-135m, input_tokens", 60 * 1_000_003 * pico, 60, "tokens"),
        ("smollm2-135m, output_tokens", 10 * 2_000_007 * pico, 10, "tokens"),
    ]
    assert sorted(days[1]) == [
        ("smollm2-135m, cached_input_tokens", 40 * pico, 40, "tokens"),
        ("smollm2-135m, input_tokens", 180 * pico, 60, "tokens"),
        ("smollm2-135m, output_tokens", 70 * pico, 10, "tokens"),
    ]
    assert days[2] == []
    as_floats = await costs.report(parse_costs("org-1", SPAN))
    for bucket in as_floats["data"]:
        for item in bucket["results"]:
            item["amount"]["value"] = float(item["amount"]["value"])
    UsageCostsResponse.model_validate(as_floats, strict=True)


async def test_a_later_price_does_not_rewrite_the_past(
    database: AsyncEngine, costs: CostReports, tmp_path: Path
) -> None:
    item: list[tuple[Attempt, Usage, Timings | None]] = [
        (attempt(started_at=MONDAY + 5, model="minilm", operation=Operation.EMBEDDING), Usage(3, 0, 0), None)
    ]
    await _settle(database, tmp_path / "ledger", item)
    before = await costs.report(parse_costs("org-1", SPAN))
    await _settle(database, tmp_path / "ledger", [], PriceList([PriceEntry(model="minilm", price=Price(1))]))
    assert await costs.report(parse_costs("org-1", SPAN)) == before
    assert before["data"][0]["results"][0]["amount"]["value"] == Decimal("0.3")


async def test_sums_over_every_grouping_are_equal(
    database: AsyncEngine, costs: CostReports, tmp_path: Path
) -> None:
    chance = random.Random(11)
    settled: list[tuple[Attempt, Usage, Timings | None]] = [
        (
            attempt(
                started_at=MONDAY + chance.random() * 3 * DAY,
                project_id=chance.choice(["proj_1", "proj_2"]),
                api_key_id=chance.choice(["key_1", "key_2"]),
                user_id=chance.choice([None, "alice"]),
                model=chance.choice(["smollm2-135m", "minilm", "free"]),
                adapter=chance.choice([None, "ft:a"]),
            ),
            Usage(chance.randrange(0, 9), chance.randrange(0, 3), chance.randrange(0, 9)),
            Timings(total_ms=chance.random() * 1000),
        )
        for _ in range(300)
    ]
    await _settle(database, tmp_path / "ledger", settled)
    groupings = [
        group for size in range(len(GROUPINGS) + 1) for group in itertools.combinations(GROUPINGS, size)
    ]
    start = MONDAY + 4_321
    for filters in (
        [],
        [("project_ids", "proj_2")],
        [("api_key_ids[]", "key_1"), ("line_items", "minilm, input_tokens")],
    ):
        totals = set()
        for group in groupings:
            params = [("start_time", str(start)), SPAN[1], *filters, *[("group_by", name) for name in group]]
            answer = await costs.report(parse_costs("org-1", params))
            results: list[dict[str, Any]] = [item for bucket in answer["data"] for item in bucket["results"]]
            totals.add(sum(item["amount"]["value"] for item in results))
            for bucket in answer["data"]:
                identities = [tuple(item[name] for name in GROUPINGS) for item in bucket["results"]]
                assert len(identities) == len(set(identities))
        assert len(totals) == 1
        assert totals.pop() > 0


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ([], "start_time"),
        ([("start_time", "5"), ("bucket_width", "1h")], "bucket_width"),
        ([("start_time", "5"), ("limit", "181")], "limit"),
        ([("start_time", "5"), ("group_by", "model")], "group_by"),
        ([("start_time", "5"), ("models", "a")], "models"),
    ],
)
def test_bad_parameter_is_named(params: list[tuple[str, str]], param: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        parse_costs("org-1", params)
    assert caught.value.param == param
