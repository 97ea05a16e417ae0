"""A store on a real SQLite file with the real schema."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.database import migrate, open_database
from tenants.store import Tenants
from tenants.tokens.sources import ReadKeys, key_client, read_url
from tenants.types import Project
from tests.tenants.issuers import IssuerServer, Stage, issuer_for, issuer_server

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
def store(database: AsyncEngine) -> Tenants:
    return Tenants.of(database, PEPPER)


@pytest.fixture
async def project(store: Tenants) -> Project:
    organization = await store.organizations.create("acme")
    return await store.projects.create(organization.id, "search")


@pytest.fixture
async def idp() -> AsyncIterator[IssuerServer]:
    async with issuer_server() as issuer:
        yield issuer


@pytest.fixture
async def stage(idp: IssuerServer, database: AsyncEngine, project: Project) -> AsyncIterator[Stage]:
    now = [1000.0]
    async with key_client() as client:
        read = partial(read_url, client, f"{idp.url}/keys")
        source = ReadKeys(name="idp", read=read, clock=lambda: now[0])
        store = Tenants.of(database, PEPPER, issuers=[issuer_for(source, idp.url)])
        yield Stage(store, idp, project, source, now)
