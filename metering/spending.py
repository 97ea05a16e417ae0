"""What has been spent since a time, read from the settled entries of the ledger."""

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import BigInteger, func, literal, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from metering.errors import StorageUnavailable
from metering.prices import PriceList
from metering.tables import ledger_entries
from metering.types import Usage

_DAY_MS = 86_400_000


async def spent_since(
    database: AsyncEngine, prices: PriceList, since: int, organization_ids: Collection[str] | None = None
) -> dict[str, int]:
    """Picodollars by project and by organization, of what began at ``since`` (unix seconds) or later.

    Every settled entry counts, with the tokens that it has; of the named organizations, or of all.
    Raises `StorageUnavailable`.
    """
    spent: dict[str, int] = {}
    try:
        async with database.connect() as connection:
            if organization_ids is None:
                organization_ids = await _organizations(connection)
            for organization_id in organization_ids:
                for project_id, cost in await _costs(connection, prices, organization_id, since):
                    for subject_id in (project_id, organization_id):
                        spent[subject_id] = spent.get(subject_id, 0) + cost
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        raise StorageUnavailable("the ledger cannot be read") from error
    return spent


async def _organizations(connection: AsyncConnection) -> list[str]:
    """Those in the ledger, each found by one step into the index instead of a walk over all entries."""
    organization = ledger_entries.c.organization_id
    found: list[str] = []
    first = await connection.scalar(select(func.min(organization)))
    while first is not None:
        found.append(first)
        first = await connection.scalar(select(func.min(organization)).where(organization > first))
    return found


async def _costs(
    connection: AsyncConnection, prices: PriceList, organization_id: str, since: int
) -> Iterator[tuple[str, int]]:
    """By project, model, adapter and day: within these the price is one, so that sums can be priced."""
    entry = ledger_entries.c
    # The width is part of the text: PostgreSQL takes two parameters of equal value for two expressions.
    day = (entry.started_ms // literal(_DAY_MS, BigInteger, literal_execute=True)).label("day")
    groups = (entry.project_id, entry.model, entry.adapter, day)
    statement = (
        select(
            *groups,
            func.sum(entry.input_tokens).label("input"),
            func.sum(entry.cached_tokens).label("cached"),
            func.sum(entry.output_tokens).label("output"),
        )
        .where(
            entry.organization_id == organization_id,
            entry.started_ms >= since * 1000,
            entry.outcome.is_not(None),
        )
        .group_by(*groups)
    )
    rows: list[Any] = list((await connection.execute(statement)).mappings().all())
    return (
        (
            row["project_id"],
            prices.price(row["model"], row["adapter"], row["day"] * _DAY_MS / 1000).cost(
                Usage(int(row["input"]), int(row["cached"]), int(row["output"]))
            ),
        )
        for row in rows
    )
