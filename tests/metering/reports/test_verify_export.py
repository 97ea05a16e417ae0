"""The check of the rollups, and exports of entries."""

import io
import random
from typing import Any

from pyarrow import parquet
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.ledger.entries import Settlement, Write
from metering.ledger.sql_writer import SqlWriter
from metering.reports.export import EXPORTED, settled_entries
from metering.reports.parquet import ParquetWriter
from metering.reports.verify import differences
from metering.tables import usage_days, usage_hours
from metering.types import Outcome, Usage
from tests.metering.conftest import attempt

DAY = 86_400
MONDAY = 1_704_067_200


async def _filled(database: AsyncEngine, count: int = 300) -> list[Write]:
    chance = random.Random(2)
    writes = [
        Write(
            attempt(
                started_at=MONDAY + chance.randrange(0, 20 * DAY),
                organization_id=chance.choice(["org-1", "org-2"]),
                user_id=chance.choice([None, "alice"]),
            ),
            Usage(chance.randrange(0, 9), 0, chance.randrange(0, 9)),
            chance.choice(
                [None, Settlement(Outcome.COMPLETED, 1, None, 200), Settlement(Outcome.FAILED, 1, None, 500)]
            ),
        )
        for _ in range(count)
    ]
    await SqlWriter(database).store([write.row() for write in writes])
    return writes


async def test_rollups_are_what_the_entries_say(database: AsyncEngine) -> None:
    assert [item async for item in differences(database)] == []
    writes = await _filled(database)
    again = [write.row() for write in writes]
    await SqlWriter(database).store(again)
    assert [item async for item in differences(database)] == []


async def test_every_difference_is_found_and_told(database: AsyncEngine) -> None:
    await _filled(database)
    async with database.begin() as connection:
        day = await connection.scalar(usage_days.select().with_only_columns(usage_days.c.day).limit(1))
        await connection.execute(
            update(usage_days)
            .where(usage_days.c.day == day, usage_days.c.organization_id == "org-1")
            .values(output_tokens=usage_days.c.output_tokens + 5)
        )
        gone = (
            await connection.execute(
                usage_hours.select().where(usage_hours.c.organization_id == "org-2").limit(1)
            )
        ).one()
        await connection.execute(
            delete(usage_hours).where(
                usage_hours.c.organization_id == "org-2",
                usage_hours.c.hour == gone.hour,
                usage_hours.c.user_id == gone.user_id,
            )
        )
    result = [item async for item in differences(database)]
    assert [(item.rollup, item.missing) for item in result] == [
        ("usage_days", {"output_tokens": -5}),
        (
            "usage_hours",
            {
                name: value
                for name, value in (
                    ("requests", gone.requests),
                    ("input_tokens", gone.input_tokens),
                    ("output_tokens", gone.output_tokens),
                )
                if value
            },
        ),
    ]


async def test_export_has_every_settled_entry_of_the_span_once(
    database: AsyncEngine,
) -> None:
    writes = await _filled(database)
    start, end = MONDAY + 2 * DAY, MONDAY + 9 * DAY
    exported = [row async for rows in settled_entries(database, start, end, chunk_rows=7) for row in rows]
    expected = {
        write.attempt.id
        for write in writes
        if write.settlement is not None and start <= write.attempt.started_at < end
    }
    assert len(exported) == len(expected)
    assert {row[0] for row in exported} == expected
    assert "owner" not in EXPORTED


async def test_parquet_can_be_read_back(database: AsyncEngine) -> None:
    await _filled(database)
    sink = io.BytesIO()
    rows: list[tuple[Any, ...]] = []
    writer = ParquetWriter(sink, EXPORTED)
    async for chunk in settled_entries(database, MONDAY, MONDAY + 30 * DAY):
        writer.write(chunk)
        rows += chunk
    writer.close()
    read = parquet.read_table(io.BytesIO(sink.getvalue()))
    assert read.to_pylist() == [dict(zip(EXPORTED, row, strict=True)) for row in rows]
    kinds = {name: str(read.schema.field(name).type) for name in ("id", "batch", "started_ms", "total_ms")}
    assert kinds == {"id": "string", "batch": "bool", "started_ms": "int64", "total_ms": "double"}
