"""Cost reports in OpenAI's shape: what settled entries cost at the prices of their day, by line item.

Amounts are whole picodollars until they are written, and exact decimal numbers on the wire.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from typing import Any

from metering.prices import DOLLAR
from metering.reports.buckets import Width
from metering.reports.pages import Reader, page_of, page_start
from metering.reports.parameters import Parameters
from metering.reports.sums import Selection, sums
from metering.reports.usage import API_SOURCE

GROUPINGS = ("project_id", "user_id", "line_item", "api_key_id", "api_source")
_WIDTH = Width(86_400, 7, 180)
_DIMENSIONS = ("project_id", "user_id", "api_key_id")
_EXACT = Context(prec=60)


@dataclass(frozen=True, slots=True)
class LineItem:
    """One thing that is charged for, and the measures of its quantity and its cost."""

    name: str
    unit: str
    cost: str
    quantity: str
    without: str | None = None
    per_unit: int = 1

    def amounts(self, measures: dict[str, int]) -> tuple[int, int]:
        """Picodollars, and the quantity in parts of the unit."""
        less = 0 if self.without is None else measures[self.without]
        return measures[self.cost], measures[self.quantity] - less


LINE_ITEMS = (
    LineItem("input_tokens", "tokens", "input_cost", "input_tokens", "cached_tokens"),
    LineItem("cached_input_tokens", "tokens", "cached_cost", "cached_tokens"),
    LineItem("output_tokens", "tokens", "output_cost", "output_tokens"),
    LineItem("engine_seconds", "duration_seconds", "engine_cost", "engine_ms", per_unit=1000),
)


@dataclass(frozen=True)
class CostQuery:
    """A cost query; as `metering.reports.usage.UsageQuery`, in buckets of a day."""

    organization_id: str
    start_time: int
    end_time: int | None = None
    limit: int | None = None
    page: str | None = None
    group_by: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    api_key_ids: tuple[str, ...] = ()
    user_ids: tuple[str, ...] = ()
    line_items: tuple[str, ...] = ()

    def identity(self) -> str:
        """All that the pages of one query have in common; their size may differ."""
        return repr(replace(self, page=None, limit=None))


def parse_costs(organization_id: str, params: Sequence[tuple[str, str]]) -> CostQuery:
    """A query from the parameters of a URL. Raises `InvalidQuery`, as `reports.usage.parse_query` does."""
    given = Parameters(params)
    given.choice("bucket_width", ("1d",), "1d")
    start, end = given.span()
    query = CostQuery(
        organization_id=organization_id,
        start_time=start,
        end_time=end,
        limit=given.number("limit", 1, _WIDTH.max_limit),
        page=given.one("page"),
        group_by=given.choices("group_by", GROUPINGS),
        project_ids=given.many("project_ids"),
        api_key_ids=given.many("api_key_ids"),
        user_ids=given.many("user_ids"),
        line_items=given.many("line_items"),
    )
    given.refuse_others()
    page_start(query)
    return query


def dollars(picodollars: int) -> Decimal:
    """The exact amount."""
    return _EXACT.divide(Decimal(picodollars), Decimal(DOLLAR))


class CostReports(Reader):
    """Answers cost queries."""

    async def report(self, query: CostQuery) -> dict[str, Any]:
        """OpenAI's ``page`` object, with `Decimal` values. Raises as `UsageReports.report` does.

        A line item of which nothing was used and which cost nothing is left out.
        """
        span, end = self.span(query, _WIDTH)
        results: dict[int, list[dict[str, Any]]] = {}
        if span.buckets:
            selection = Selection(
                query.organization_id,
                filters={
                    "project_id": query.project_ids,
                    "api_key_id": query.api_key_ids,
                    "user_id": query.user_ids,
                },
            )
            dimensions = [name for name in _DIMENSIONS if name in query.group_by]
            async with self.connection() as connection:
                summed = await sums(
                    connection,
                    selection,
                    _WIDTH.seconds,
                    (span.buckets[0][0], end),
                    [*dimensions, "model", "adapter"],
                )
            for (bucket, *values), items in _by_line_item(summed, len(dimensions), query).items():
                grouped = dict(zip(dimensions, values, strict=True))
                results.setdefault(bucket, []).extend(_results(query, grouped, items))
        return page_of(query, _WIDTH, span, results)


_Items = dict[tuple[str, str, int], tuple[int, int]]


def _by_line_item(
    summed: dict[tuple[Any, ...], dict[str, int]], dimensions: int, query: CostQuery
) -> dict[tuple[Any, ...], _Items]:
    """By bucket and group: by name, unit and parts of a unit, the picodollars and the quantity."""
    items_by_key: dict[tuple[Any, ...], _Items] = {}
    for key, measures in summed.items():
        model, adapter = key[1 + dimensions :]
        items = items_by_key.setdefault(key[: 1 + dimensions], {})
        for item in LINE_ITEMS:
            name = f"{adapter or model}, {item.name}"
            cost, quantity = item.amounts(measures)
            timed_for_nothing = item.cost == "engine_cost" and not cost
            if (query.line_items and name not in query.line_items) or not (cost or quantity):
                continue
            if timed_for_nothing:
                continue
            totals = items.get((name, item.unit, item.per_unit), (0, 0))
            items[name, item.unit, item.per_unit] = (totals[0] + cost, totals[1] + quantity)
    return {key: items for key, items in items_by_key.items() if items}


def _results(query: CostQuery, grouped: dict[str, Any], items: _Items) -> list[dict[str, Any]]:
    if "line_item" in query.group_by:
        return [
            _result(query, grouped, cost, name, _quantity(amount, parts), unit)
            for (name, unit, parts), (cost, amount) in items.items()
        ]
    return [_result(query, grouped, sum(cost for cost, _ in items.values()), None, None, None)]


def _quantity(amount: int, parts: int) -> int | Decimal:
    return amount if parts == 1 else _EXACT.divide(Decimal(amount), Decimal(parts))


def _result(
    query: CostQuery,
    grouped: dict[str, Any],
    cost: int,
    line_item: str | None,
    quantity: int | Decimal | None,
    unit: str | None,
) -> dict[str, Any]:
    return {
        "object": "organization.costs.result",
        "amount": {"value": dollars(cost), "currency": "usd"},
        "line_item": line_item,
        "project_id": grouped.get("project_id") or None,
        "user_id": grouped.get("user_id") or None,
        "api_key_id": grouped.get("api_key_id") or None,
        "api_source": API_SOURCE if "api_source" in query.group_by else None,
        "quantity": quantity,
        "quantity_unit": unit,
    }
