"""Sums over settled entries, by bucket and group: from the rollups, and at the edges from the entries.

A span is cut into whole days, whole hours beside them, and what is left. Days are read from `usage_days`
where neither keys nor users are asked for, hours from `usage_hours`, the rest from `ledger_entries`. All
three count the same entries, so the sums do not depend on how the span was cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, Table, case, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from metering.ledger.rollups import NULLABLE
from metering.tables import MEASURES, ledger_entries, usage_days, usage_hours
from metering.types import Outcome


async def organizations(connection: AsyncConnection) -> list[str]:
    """In order; each is found by one step into an index instead of a walk over all entries."""
    ids: set[str] = set()
    for table in (ledger_entries, usage_days):
        organization = table.c.organization_id
        first = await connection.scalar(select(func.min(organization)))
        while first is not None:
            ids.add(first)
            first = await connection.scalar(select(func.min(organization)).where(organization > first))
    return sorted(ids)


HOUR_S = 3_600
DAY_S = 86_400
_DETAILS = frozenset({"api_key_id", "user_id"})
_MONEY = frozenset({"input_cost", "cached_cost", "output_cost", "engine_cost"})
SERVED_MODEL = "served_model"
"""To group and to filter by: the adapter, where one was asked for, and else the model."""
_MICRO = 1_000_000
"""Money is summed in two parts: SQLite's sum has 64 bits, which are nine million dollars."""

Sums = dict[tuple[Any, ...], dict[str, int]]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries; an empty filter lets everything through, ``batch`` is ``None`` for both kinds."""

    organization_id: str
    operations: tuple[str, ...] = ()
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    batch: bool | None = None

    def needs(self, group_by: Sequence[str]) -> bool:
        """Whether it asks for keys or users."""
        chosen = {name for name, values in self.filters.items() if values}
        return bool(_DETAILS & (chosen | set(group_by)))


@dataclass(frozen=True, slots=True)
class SpanPart:
    """A part of a span, in unix seconds, and the table that it is read from."""

    table: Table
    start: int
    end: int


def pieces(start: int, end: int, width_s: int, *, details: bool) -> list[SpanPart]:
    """The span cut into what can be read from the rollups, and the rest."""
    levels: list[tuple[int, Table]] = []
    if width_s >= DAY_S and not details:
        levels.append((DAY_S, usage_days))
    if width_s >= HOUR_S:
        levels.append((HOUR_S, usage_hours))
    return _cut(start, end, levels)


def _cut(start: int, end: int, levels: list[tuple[int, Table]]) -> list[SpanPart]:
    if start >= end:
        return []
    if not levels:
        return [SpanPart(ledger_entries, start, end)]
    (size, table), finer = levels[0], levels[1:]
    first, last = -(-start // size) * size, end // size * size
    if first >= last:
        return _cut(start, end, finer)
    return [*_cut(start, first, finer), SpanPart(table, first, last), *_cut(last, end, finer)]


async def sums(
    connection: AsyncConnection,
    selection: Selection,
    width_s: int,
    span: tuple[int, int],
    group_by: Sequence[str],
    measures: Sequence[str] = MEASURES,
) -> Sums:
    """By bucket (a multiple of ``width_s``) and group. Null is an empty string."""
    totals: Sums = {}
    for piece in pieces(*span, width_s, details=selection.needs(group_by)):
        statement = statement_of(piece, selection, width_s, group_by, measures)
        for row in (await connection.execute(statement)).mappings():
            key = (row["bucket"], *(row[name] for name in group_by))
            values = totals.setdefault(key, dict.fromkeys(measures, 0))
            for name in measures:
                high = int(row[f"{name}_high"]) * _MICRO if name in _MONEY else 0
                values[name] += int(row[f"sum_{name}"]) + high
    return dict(sorted(totals.items()))


def statement_of(
    piece: SpanPart, selection: Selection, width_s: int, group_by: Sequence[str], measures: Sequence[str]
) -> Select[Any]:
    """The statement for one piece, in whole-number arithmetic.

    Widths are part of the text: PostgreSQL takes two parameters of equal value for two expressions.
    """
    table = piece.table
    unit_ms, time = _time(table)
    width = literal(width_s * 1000 // unit_ms, BigInteger, literal_execute=True)
    bucket = (time if width_s * 1000 == unit_ms else time // width).label("bucket")
    groups = [_group(table, name).label(name) for name in group_by]
    selected = [
        table.c.organization_id == selection.organization_id,
        time >= piece.start * 1000 // unit_ms,
        time < piece.end * 1000 // unit_ms,
    ]
    if selection.operations:
        selected.append(table.c.operation.in_(selection.operations))
    selected += [_group(table, name).in_(values) for name, values in selection.filters.items() if values]
    if selection.batch is not None:
        selected.append(table.c.batch.is_(selection.batch))
    if table is ledger_entries:
        selected.append(counted())
    columns = [column for name in measures for column in _sum(table, name)]
    grouping = [bucket.element, *[group.element for group in groups]]
    return select(bucket, *groups, *columns).where(*selected).group_by(*grouping)


def counted() -> ColumnElement[bool]:
    """What of `ledger_entries` is in reports, as `metering.ledger.rollups.counts` has it."""
    entry = ledger_entries.c
    return or_(
        entry.outcome == Outcome.COMPLETED.value,
        entry.outcome.is_not(None) & ((entry.input_tokens > 0) | (entry.output_tokens > 0)),
    )


def _time(table: Table) -> tuple[int, ColumnElement[int]]:
    """What a unit of the table's time is in milliseconds, and its column."""
    if table is usage_days:
        return DAY_S * 1000, table.c.day
    if table is usage_hours:
        return HOUR_S * 1000, table.c.hour
    return 1, table.c.started_ms


def _group(table: Table, name: str) -> ColumnElement[Any]:
    if name == SERVED_MODEL:
        adapter = func.coalesce(table.c.adapter, literal("", literal_execute=True))
        return case((adapter != literal("", literal_execute=True), adapter), else_=table.c.model)
    column = table.c[name]
    if table is ledger_entries and name in NULLABLE:
        return func.coalesce(column, literal("", literal_execute=True))
    return column


def _sum(table: Table, name: str) -> list[ColumnElement[Any]]:
    if table is ledger_entries and name == "requests":
        return [func.count().label("sum_requests")]
    column = table.c[name]
    if name in _MONEY:
        return [
            func.sum(column % _MICRO).label(f"sum_{name}"),
            func.sum(column // _MICRO).label(f"{name}_high"),
        ]
    return [func.sum(column).label(f"sum_{name}")]
