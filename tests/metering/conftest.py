"""A real SQLite file with the real schema, and what is in its ledger."""

import itertools
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.database import migrate, open_database
from metering.ledger.service import Ledger
from metering.ledger.sql_writer import SqlWriter
from metering.ledger.sqlite_writer import SqliteWriter
from metering.types import Attempt, Operation

_numbers = itertools.count()


def attempt(**changes: Any) -> Attempt:
    """An attempt with an id of its own."""
    values: dict[str, Any] = {
        "id": f"att_{next(_numbers)}",
        "request_id": "req_1",
        "organization_id": "org-1",
        "project_id": "proj_1",
        "api_key_id": "key_1",
        "user_id": None,
        "model": "smollm2-135m",
        "operation": Operation.CHAT,
        "started_at": time.time(),
    }
    return Attempt(**{**values, **changes})


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    path = tmp_path / "torpor.db"
    await migrate(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
async def database(file: Path) -> AsyncIterator[AsyncEngine]:
    engine = open_database(f"sqlite+aiosqlite:///{file}")
    yield engine
    await engine.dispose()


Entries = Callable[[], dict[str, dict[str, Any]]]


async def applied(ledger: Ledger, entries: Entries) -> dict[str, dict[str, Any]]:
    """The ledger in the database, once that has what the journal has."""
    assert await ledger.applied()
    return entries()


@pytest.fixture
def entries(file: Path) -> Entries:
    """Read the ledger through a connection of its own: by id."""

    def read() -> dict[str, dict[str, Any]]:
        connection = sqlite3.connect(file)
        connection.row_factory = sqlite3.Row
        try:
            rows = connection.execute("SELECT * FROM ledger_entries").fetchall()
        finally:
            connection.close()
        return {row["id"]: dict(row) for row in rows}

    return read


Make = Callable[..., Ledger]


@pytest.fixture(params=["thread", "sqlalchemy"])
async def make(request: pytest.FixtureRequest, file: Path) -> AsyncIterator[Make]:
    """Make ledgers on the file, whose writer gives up on a lock after 50 ms."""
    database = open_database(f"sqlite+aiosqlite:///{file}")
    event.listen(
        database.sync_engine,
        "connect",
        lambda connection, _: connection.execute("PRAGMA busy_timeout = 50").close(),
    )
    if request.param == "thread":
        yield lambda folder="ledger", **settings: Ledger(
            SqliteWriter(str(file), busy_timeout_ms=50), file.parent / folder, **settings
        )
    else:
        yield lambda folder="ledger", **settings: Ledger(
            SqlWriter(database), file.parent / folder, **settings
        )
    await database.dispose()


@pytest.fixture
async def ledger(make: Make) -> AsyncIterator[Ledger]:
    async with make() as opened:
        yield opened


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the real models, as `make up` prepares it."""
    default = Path(__file__).parents[2] / "models"
    folder = Path(os.environ.get("TORPOR_MODELS", default))
    if not (folder / "smollm2-135m" / "tokenizer.json").is_file():
        pytest.fail(f"no models in {folder}: prepare them, or set TORPOR_MODELS")
    return folder
