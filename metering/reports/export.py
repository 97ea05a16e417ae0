"""Settled entries, for accounting."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.reports.sums import organizations
from metering.tables import ledger_entries

EXPORTED = tuple(column.name for column in ledger_entries.columns if column.name != "owner")


async def settled_entries(
    database: AsyncEngine, start: int, end: int, *, chunk_rows: int = 5_000
) -> AsyncIterator[Sequence[tuple[Any, ...]]]:
    """What began from ``start`` to ``end`` (exclusive, unix seconds), by organization and start, in chunks.

    Values are in the order of `EXPORTED`.
    """
    entry = ledger_entries.c
    columns = [entry[name] for name in EXPORTED]
    async with database.connect() as connection:
        for organization_id in await organizations(connection):
            after = (start * 1000, "")
            while True:
                beyond = or_(
                    entry.started_ms > after[0], and_(entry.started_ms == after[0], entry.id > after[1])
                )
                statement = (
                    select(*columns)
                    .where(
                        entry.organization_id == organization_id,
                        entry.started_ms >= after[0],
                        entry.started_ms < end * 1000,
                        beyond,
                        entry.outcome.is_not(None),
                    )
                    .order_by(entry.started_ms, entry.id)
                    .limit(chunk_rows)
                )
                rows = [tuple(row) for row in await connection.execute(statement)]
                if rows:
                    yield rows
                if len(rows) < chunk_rows:
                    break
                last = dict(zip(EXPORTED, rows[-1], strict=True))
                after = (last["started_ms"], last["id"])
