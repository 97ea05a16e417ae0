"""An installation with a ledger of before the rollups gets them filled."""

import random
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, insert
from sqlalchemy.ext.asyncio import create_async_engine

import gateway.storage.migrations
from gateway.storage.database import migrate, open_database
from metering.ledger.entries import COLUMNS, Settlement, Write
from metering.reports.verify import differences
from metering.tables import ledger_entries, usage_hours
from metering.types import Outcome, Usage
from tests.metering.conftest import attempt

_NEW = {"owner", "engine_ms", "input_cost", "cached_cost", "output_cost", "engine_cost"}


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(gateway.storage.migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "0004")


async def test_rollups_of_earlier_entries_are_filled(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'torpor.db'}"
    chance = random.Random(4)
    old = create_async_engine(url)
    rows = []
    for _ in range(200):
        settlement = chance.choice([None, Settlement(Outcome.COMPLETED, 1, None, 200)])
        item = attempt(
            started_at=1_704_067_200 + chance.randrange(0, 200_000),
            user_id=chance.choice([None, "alice"]),
            service_tier=chance.choice([None, "flex"]),
        )
        row = Write(item, Usage(chance.randrange(9), 0, chance.randrange(9)), settlement).row()
        rows.append({name: value for name, value in zip(COLUMNS, row, strict=True) if name not in _NEW})
    async with old.begin() as connection:
        await connection.run_sync(_upgrade)
        columns = [column for column in ledger_entries.columns if column.name not in _NEW]
        await connection.execute(
            insert(ledger_entries).values({column.name: None for column in columns}), rows
        )
    await old.dispose()
    await migrate(url)
    database = open_database(url)
    try:
        assert [item async for item in differences(database)] == []
        async with database.connect() as connection:
            hours = (await connection.execute(usage_hours.select())).all()
        assert sum(hour.requests for hour in hours) == sum(row["outcome"] is not None for row in rows)
    finally:
        await database.dispose()
