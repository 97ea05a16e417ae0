"""Revocations are seen by every process that works with the data directory, and by the very next request."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.accounts.change_log import EVERYTHING, ChangeLog
from tenants.errors import InvalidCredential
from tenants.store import Tenants, open_tenants
from tenants.types import Project
from tests.process import REPOSITORY
from tests.tenants.conftest import PEPPER

_WORKER = """
import asyncio, sys
from pathlib import Path
from gateway.storage.database import open_database
from tenants.errors import InvalidCredential
from tenants.store import open_tenants
from tests.tenants.conftest import PEPPER, Statements

async def main(url, changes):
    database = open_database(url)
    async with open_tenants(database, PEPPER, changes=Path(changes)) as store:
        statements = Statements(database)
        print("ready", flush=True)
        for line in sys.stdin:
            secret = line.strip()
            before = statements.count
            try:
                outcome = (await store.credentials.authenticate(secret)).key_id
            except InvalidCredential as error:
                outcome = error.reason
            print(outcome, statements.count - before, flush=True)
    await database.dispose()

asyncio.run(main(*sys.argv[1:]))
"""


class Worker:
    """Another process with a store on the same database."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def authenticate(self, secret: str) -> tuple[str, int]:
        """What it says of the key, and how many statements that took."""
        assert self._process.stdin is not None
        self._process.stdin.write(secret.encode() + b"\n")
        answer, statements = (await self.line()).split()
        return answer, int(statements)


@asynccontextmanager
async def _worker(folder: Path) -> AsyncIterator[Worker]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WORKER,
        f"sqlite+aiosqlite:///{folder / 'torpor.db'}",
        str(folder / "changes"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    try:
        worker = Worker(process)
        assert await worker.line() == "ready"
        yield worker
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0


async def test_another_process_sees_a_revocation_at_its_next_request(
    database: AsyncEngine, project: Project, tmp_path: Path
) -> None:
    async with (
        _worker(tmp_path) as worker,
        open_tenants(database, PEPPER, changes=tmp_path / "changes") as store,
    ):
        organization = project.organization_id
        key, secret = await store.keys.create_for_project(organization, project.id, "key")
        other, unharmed = await store.keys.create_for_project(organization, project.id, "other")
        for item, held in ((key, secret), (other, unharmed)):
            assert await worker.authenticate(held) == (item.id, 1)
            assert await worker.authenticate(held) == (item.id, 0)
        await store.keys.revoke(organization, key.id)
        assert await worker.authenticate(secret) == ("revoked", 1)
        assert await worker.authenticate(unharmed) == (other.id, 0), "nothing else is forgotten"
        await store.projects.archive(organization, project.id)
        assert await worker.authenticate(unharmed) == ("archived", 1)


async def test_a_process_that_starts_lets_the_others_forget(
    database: AsyncEngine, project: Project, tmp_path: Path
) -> None:
    """The one before it may have ended between its commit and the telling of it."""
    file = tmp_path / "changes"
    async with open_tenants(database, PEPPER, changes=file) as store:
        _, secret = await store.keys.create_for_project(project.organization_id, project.id, "key")
        await store.credentials.authenticate(secret)
        async with open_tenants(database, PEPPER, changes=file):
            assert store.credentials.known(secret) is None
            assert (await store.credentials.authenticate(secret)).project_id == project.id


async def test_read_that_began_before_anothers_revocation_is_not_remembered(
    database: AsyncEngine, project: Project, tmp_path: Path
) -> None:
    file = tmp_path / "changes"
    with_file = Tenants.of(database, PEPPER, changes=ChangeLog(file))
    revoking = Tenants.of(database, PEPPER, changes=ChangeLog(file))
    for _ in range(10):
        key, secret = await revoking.keys.create_for_project(project.organization_id, project.id, "key")
        racing = [with_file.credentials.authenticate(secret) for _ in range(4)]
        await asyncio.gather(
            *racing, revoking.keys.revoke(project.organization_id, key.id), return_exceptions=True
        )
        with pytest.raises(InvalidCredential):
            await with_file.credentials.authenticate(secret)


@pytest.mark.parametrize("shared", [True, False])
def test_changes_are_told_in_order_and_never_lost(tmp_path: Path, shared: bool) -> None:
    log = ChangeLog(tmp_path / "changes" if shared else None)
    seen = log.count
    assert log.since(seen) == (seen, frozenset())
    for number in range(256):
        log.publish(f"key_{number}")
    count, subjects = log.since(seen)
    assert count == log.count == seen + 256
    assert subjects == {f"key_{number}" for number in range(256)}
    log.publish("one too many")
    assert log.since(seen)[1] == {EVERYTHING}
    assert log.since(count)[1] == {"one too many"}
    log.publish("x" * 65)
    assert log.since(count + 1)[1] == {EVERYTHING}
    log.close()


def test_the_counter_outlives_its_process(tmp_path: Path) -> None:
    first = ChangeLog(tmp_path / "changes")
    first.publish("a")
    second = ChangeLog(tmp_path / "changes")
    assert second.count == 1
    first.publish("b")
    assert second.since(1) == (2, frozenset({"b"}))
    first.close()
    second.close()
    assert (tmp_path / "changes").stat().st_mode & 0o777 == 0o600
    spoilt = tmp_path / "spoilt"
    spoilt.write_bytes(b"x" * 100)
    log = ChangeLog(spoilt)
    assert log.count == 0
    log.close()
