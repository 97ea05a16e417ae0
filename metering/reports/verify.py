"""Recomputes every rollup from the entries, and tells where the two differ."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Select, Table, func, literal, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from metering.ledger.rollups import DAY_MS, HOUR_MS, NULLABLE, ROLLUPS
from metering.reports.sums import counted, organizations
from metering.tables import MEASURES, ledger_entries, usage_days

_STEP_DAYS = 7


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of a rollup that is not what the entries say: by measure, the entries' sum less the rollup's."""

    rollup: str
    key: dict[str, Any]
    missing: dict[str, int]


async def differences(database: AsyncEngine) -> AsyncIterator[Difference]:
    """Check all entries. Each step reads both sides in one statement, so an entry that is settled at the same
    time is in both or in neither."""
    async with database.connect() as connection:
        for organization_id in await organizations(connection):
            span = await _days(connection, organization_id)
            for first in range(span[0], span[1] + 1, _STEP_DAYS):
                for table, keys in ROLLUPS:
                    statement = _compare(table, keys, organization_id, first, first + _STEP_DAYS)
                    for row in (await connection.execute(statement)).mappings():
                        missing = {name: int(row[name]) for name in MEASURES if row[name]}
                        yield Difference(table.name, {name: row[name] for name in keys}, missing)


async def _days(connection: AsyncConnection, organization_id: str) -> tuple[int, int]:
    """The first and the last day of which there is anything on either side."""
    entry, day = ledger_entries.c, usage_days.c
    ends = []
    for column, table, unit in ((entry.started_ms, ledger_entries, DAY_MS), (day.day, usage_days, 1)):
        statement = select(func.min(column), func.max(column)).where(
            table.c.organization_id == organization_id
        )
        low, high = (await connection.execute(statement)).one()
        ends += [value // unit for value in (low, high) if value is not None]
    return (min(ends), max(ends)) if ends else (0, -1)


def _compare(table: Table, keys: tuple[str, ...], organization_id: str, first: int, end: int) -> Select[Any]:
    entry = ledger_entries.c
    unit = DAY_MS if table is usage_days else HOUR_MS
    time = table.c[keys[1]]
    per_day = DAY_MS // unit
    width = literal(unit, BigInteger, literal_execute=True)
    empty = literal("", literal_execute=True)
    computed_keys = [
        (entry.started_ms // width).label(name)
        if name == keys[1]
        else (func.coalesce(entry[name], empty) if name in NULLABLE else entry[name]).label(name)
        for name in keys
    ]
    computed = select(
        *computed_keys,
        literal(1, BigInteger).label("requests"),
        *[entry[name].label(name) for name in MEASURES[1:]],
    ).where(
        entry.organization_id == organization_id,
        entry.started_ms >= first * DAY_MS,
        entry.started_ms < end * DAY_MS,
        counted(),
    )
    stored = select(
        *[table.c[name].label(name) for name in keys],
        *[(-table.c[name]).label(name) for name in MEASURES],
    ).where(table.c.organization_id == organization_id, time >= first * per_day, time < end * per_day)
    both = union_all(computed, stored).subquery()
    totals = [func.sum(both.c[name]).label(name) for name in MEASURES]
    grouped = [both.c[name] for name in keys]
    return (
        select(*grouped, *totals)
        .group_by(*grouped)
        .having(or_(*[func.sum(both.c[name]) != 0 for name in MEASURES]))
        .order_by(*grouped)
    )
