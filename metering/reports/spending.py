"""What has been spent since a time, from the costs that were stored when entries were settled."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.reports.sums import DAY_S
from metering.tables import ledger_entries, usage_days
from tenants.errors import StorageUnavailable


async def spent_since(
    database: AsyncEngine,
    since: int,
    organization_ids: Collection[str] | None = None,
    *,
    until: int | None = None,
) -> dict[str, int]:
    """Picodollars for tokens by project and by organization, of what began from ``since`` to ``until``.

    Times are in unix seconds; without ``until`` there is no end, and ``until`` itself is not included. Every
    settled entry counts, with the tokens that it has; of the named organizations, or of all.
    Raises `StorageUnavailable`.
    """
    spent: dict[str, int] = {}
    statements = _statements(since, until)
    try:
        async with database.connect() as connection:
            for every in statements:
                its = every.selected_columns.organization_id
                statement = every if organization_ids is None else every.where(its.in_(organization_ids))
                for organization_id, project_id, *costs in await connection.execute(statement):
                    for subject_id in (project_id, organization_id):
                        spent[subject_id] = spent.get(subject_id, 0) + sum(map(int, costs))
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        raise StorageUnavailable("the ledger cannot be read") from error
    return spent


def _statements(since: int, until: int | None) -> list[Select[Any]]:
    """Whole days are read from their rollup, what is left at the edges from the entries themselves."""
    first_day = -(-since // DAY_S)
    last_day = None if until is None else max(first_day, until // DAY_S)
    days = _by_project(usage_days).where(usage_days.c.day >= first_day)
    edges = [(since, first_day * DAY_S if until is None else min(first_day * DAY_S, until))]
    if until is not None and last_day is not None:
        days = days.where(usage_days.c.day < last_day)
        edges.append((max(since, last_day * DAY_S), until))
    entry = ledger_entries.c
    return [days] + [
        _by_project(ledger_entries).where(
            entry.started_ms >= start * 1000, entry.started_ms < end * 1000, entry.outcome.is_not(None)
        )
        for start, end in edges
        if start < end
    ]


def _by_project(table: Any) -> Select[Any]:
    costs = (table.c.input_cost, table.c.cached_cost, table.c.output_cost)
    groups = (table.c.organization_id, table.c.project_id)
    return select(*groups, *map(func.sum, costs)).group_by(*groups)
