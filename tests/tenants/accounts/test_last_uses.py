"""When a key was last used: written now and then, never by the request itself."""

import asyncio
import sqlite3
import time
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.accounts.last_uses import LastUses
from tenants.errors import InvalidCredential
from tenants.store import Tenants, open_tenants
from tenants.types import Project
from tests.tenants.conftest import PEPPER, Statements


async def _used_at(store: Tenants, project: Project) -> list[int | None]:
    page = await store.keys.listed(project.organization_id)
    return [key.last_used_at for key in page.items]


async def test_it_is_written_at_the_end(database: AsyncEngine, store: Tenants, project: Project) -> None:
    _, secret = await store.keys.create_for_project(project.organization_id, project.id, "used")
    await store.keys.create_for_project(project.organization_id, project.id, "not used")
    began = int(time.time())
    async with open_tenants(database, PEPPER) as opened:
        await opened.credentials.authenticate(secret)
        statements = Statements(database)
        for _ in range(100):
            await opened.credentials.authenticate(secret)
        assert statements.count == 0, "no request waits for it"
        assert await _used_at(store, project) == [None, None]
    used, unused = sorted(await _used_at(store, project), key=str)
    assert unused is None
    assert used is not None
    assert began <= used <= time.time()


async def test_an_expired_key_was_not_used(database: AsyncEngine, store: Tenants, project: Project) -> None:
    now = [time.time()]
    _, secret = await store.keys.create_for_project(
        project.organization_id, project.id, "short", expires_at=int(now[0]) + 60
    )
    late = Tenants.of(database, PEPPER, clock=lambda: now[0] + 60)
    with pytest.raises(InvalidCredential):
        await late.credentials.authenticate(secret)
    late.last_uses.close()
    await late.last_uses.run()
    assert await _used_at(store, project) == [None]


async def test_it_is_written_while_the_gateway_runs(
    database: AsyncEngine, store: Tenants, project: Project
) -> None:
    _, secret = await store.keys.create_for_project(project.organization_id, project.id, "used")
    async with open_tenants(database, PEPPER, uses_every_s=0.2) as opened:
        statements = Statements(database)
        for _ in range(10):
            await opened.credentials.authenticate(secret)
            await asyncio.sleep(0.05)
        assert 1 <= statements.count - 1 <= 3, "one look-up, and a write each time"
        assert (await _used_at(store, project))[0] is not None


async def test_what_could_not_be_written_is_written_later(
    database: AsyncEngine,
    store: Tenants,
    project: Project,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, secret = await store.keys.create_for_project(project.organization_id, project.id, "used")
    async with open_tenants(database, PEPPER, uses_every_s=0.05) as opened:
        await opened.credentials.authenticate(secret)
        with sqlite3.connect(tmp_path / "torpor.db") as other:
            other.execute("ALTER TABLE api_keys RENAME TO hidden")
        await asyncio.sleep(0.3)
        with other:
            other.execute("ALTER TABLE hidden RENAME TO api_keys")
        other.close()
    assert "could not be written" in caplog.text
    assert (await _used_at(store, project))[0] is not None


async def _write(store: Tenants) -> None:
    """What is noted, as at the end of a gateway."""
    uses = LastUses(store.storage, store.credentials._clock)
    uses._noted, store.last_uses._noted = store.last_uses._noted, {}
    writing = asyncio.create_task(uses.run())
    await asyncio.sleep(0)
    uses.close()
    await writing


@pytest.mark.parametrize("ahead_s", [366 * 24 * 3600, 3600])
async def test_a_clock_that_was_ahead_is_recovered_from(
    database: AsyncEngine, store: Tenants, project: Project, ahead_s: int
) -> None:
    now = [time.time() + ahead_s]
    _, secret = await store.keys.create_for_project(project.organization_id, project.id, "used")
    ahead = Tenants.of(database, PEPPER, clock=lambda: now[0])
    await ahead.credentials.authenticate(secret)
    await _write(ahead)
    assert await _used_at(store, project) == [int(now[0])]
    # Noted while it was ahead, written after it was put right.
    await ahead.credentials.authenticate(secret)
    now[0] -= ahead_s
    await _write(ahead)
    assert await _used_at(store, project) == [int(now[0])]


async def test_a_late_write_does_not_go_back(database: AsyncEngine, store: Tenants, project: Project) -> None:
    """A gateway wrote an hour late, since its database was away, and another one had written."""
    began = time.time()
    now = [began]
    _, secret = await store.keys.create_for_project(project.organization_id, project.id, "used")
    late = Tenants.of(database, PEPPER, clock=lambda: now[0])
    await late.credentials.authenticate(secret)
    other = Tenants.of(database, PEPPER, clock=lambda: began + 3590)
    await other.credentials.authenticate(secret)
    await _write(other)
    now[0] += 3600
    await _write(late)
    assert await _used_at(store, project) == [int(began + 3590)]
