"""What has been spent since a time, from the costs that were stored when entries were settled."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.errors import StorageUnavailable
from metering.sums import DAY_S
from metering.tables import ledger_entries, usage_days


async def spent_since(
    database: AsyncEngine, since: int, organization_ids: Collection[str] | None = None
) -> dict[str, int]:
    """Picodollars for tokens by project and by organization, of what began at ``since`` or later.

    ``since`` is in unix seconds. Every settled entry counts, with the tokens that it has; of the named
    organizations, or of all.
    Raises `StorageUnavailable`.
    """
    spent: dict[str, int] = {}
    first_day = -(-since // DAY_S)
    entry, days = ledger_entries.c, usage_days.c
    edge = (entry.started_ms >= since * 1000, entry.started_ms < first_day * DAY_S * 1000)
    statements = [_by_project(usage_days).where(days.day >= first_day)]
    if since % DAY_S:
        statements.append(_by_project(ledger_entries).where(*edge, entry.outcome.is_not(None)))
    try:
        async with database.connect() as connection:
            for every in statements:
                its = every.selected_columns.organization_id
                wanted = every if organization_ids is None else every.where(its.in_(organization_ids))
                for organization_id, project_id, *costs in await connection.execute(wanted):
                    for subject_id in (project_id, organization_id):
                        spent[subject_id] = spent.get(subject_id, 0) + sum(map(int, costs))
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        raise StorageUnavailable("the ledger cannot be read") from error
    return spent


def _by_project(table: Any) -> Select[Any]:
    costs = (table.c.input_cost, table.c.cached_cost, table.c.output_cost)
    groups = (table.c.organization_id, table.c.project_id)
    return select(*groups, *map(func.sum, costs)).group_by(*groups)
