"""A store on a real SQLite file with the real schema."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database import migrate, open_database
from tenants.store import TenantStore
from tenants.types import Project

PEPPER = b"p" * 32


class Statements:
    """Counts what is asked of the database."""

    def __init__(self, database: AsyncEngine) -> None:
        self.count = 0
        event.listen(database.sync_engine, "before_cursor_execute", self._one)

    def _one(self, *_arguments: object) -> None:
        self.count += 1


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'torpor.db'}"
    await migrate(url)
    engine = open_database(url)
    yield engine
    await engine.dispose()


@pytest.fixture
def store(database: AsyncEngine) -> TenantStore:
    return TenantStore(database, PEPPER)


@pytest.fixture
async def project(store: TenantStore) -> Project:
    organization = await store.create_organization("acme")
    return await store.create_project(organization.id, "search")
