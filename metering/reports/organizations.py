"""The organizations that the ledger knows."""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from metering.tables import ledger_entries, usage_days


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
