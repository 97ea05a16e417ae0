"""A store on a real SQLite file with the real schema."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database import migrate, open_database
from tenants.store import TenantStore

PEPPER = b"p" * 32


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
