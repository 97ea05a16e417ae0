"""Who a secret stands for, and how soon it stops to."""

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.database import open_database
from tenants.accounts import credential_cache
from tenants.accounts.credential_cache import CredentialCache
from tenants.accounts.keys import KnownKey
from tenants.errors import InvalidCredential, StorageUnavailable
from tenants.store import Tenants
from tenants.types import ALL_SCOPES, KeyKind, Project, ProjectPrincipal
from tests.tenants.conftest import PEPPER, Statements


async def _reason(store: Tenants, secret: str) -> str:
    with pytest.raises(InvalidCredential) as caught:
        await store.credentials.authenticate(secret)
    return caught.value.reason


async def test_project_key_stands_for_its_project(store: Tenants, project: Project) -> None:
    key, secret = await store.keys.create_for_project(project.organization_id, project.id, "key")
    assert await store.credentials.authenticate(secret) == ProjectPrincipal(
        kind=KeyKind.PROJECT,
        key_id=key.id,
        organization_id=project.organization_id,
        organization="acme",
        project_id=project.id,
        user_id=None,
        scopes=ALL_SCOPES,
    )


async def test_root_and_admin_keys_stand_for_no_project(store: Tenants, project: Project) -> None:
    _, root = await store.keys.create_root()
    _, admin = await store.keys.create_admin(project.organization_id, "admin")
    assert (await store.credentials.authenticate(root)).organization_id is None
    principal = await store.credentials.authenticate(admin)
    assert (principal.kind, principal.organization) == (KeyKind.ADMIN, "acme")
    assert principal.project_id is None


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("", "missing"),
        ("hello", "unknown"),
        ("sk-" + "a" * 48, "unknown"),
        ("sk-ü", "unknown"),
        ("sk-\ud800", "unknown"),
        ("sk-" + "a" * 100_000, "unknown"),
        ("sk-' OR 1=1 --", "unknown"),
    ],
)
async def test_what_is_no_key_is_refused(store: Tenants, secret: str, reason: str) -> None:
    assert await _reason(store, secret) == reason


async def test_key_of_another_installation_is_unknown(
    store: Tenants, project: Project, database: AsyncEngine
) -> None:
    _, secret = await store.keys.create_for_project(project.organization_id, project.id, "key")
    assert await _reason(Tenants.of(database, b"another pepper"), secret) == "unknown"


async def test_known_key_costs_no_look_into_the_database(
    store: Tenants, project: Project, database: AsyncEngine
) -> None:
    _, secret = await store.keys.create_for_project(project.organization_id, project.id, "key")
    await store.credentials.authenticate(secret)
    statements = Statements(database)
    for _ in range(100):
        await store.credentials.authenticate(secret)
    assert statements.count == 0


async def test_unknown_key_is_looked_up_once(store: Tenants, project: Project, database: AsyncEngine) -> None:
    await _reason(store, "sk-" + "a" * 48)
    statements = Statements(database)
    for _ in range(100):
        assert await _reason(store, "sk-" + "a" * 48) == "unknown"
        assert await _reason(store, "no key at all") == "unknown"
    assert statements.count == 0


async def test_refused_secret_works_once_such_a_key_is_made(
    store: Tenants, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-" + "a" * 48
    assert await _reason(store, secret) == "unknown"
    monkeypatch.setattr("tenants.accounts.keys.new_secret", lambda _kind: secret)
    await store.keys.create_for_project(project.organization_id, project.id, "key")
    assert (await store.credentials.authenticate(secret)).project_id == project.id


async def test_revoked_key_fails_at_the_next_call(store: Tenants, project: Project) -> None:
    key, secret = await store.keys.create_for_project(project.organization_id, project.id, "key")
    _, other = await store.keys.create_for_project(project.organization_id, project.id, "other")
    await store.credentials.authenticate(secret)
    await store.keys.revoke(project.organization_id, key.id)
    assert await _reason(store, secret) == "revoked"
    assert await _reason(store, secret) == "revoked"
    assert (await store.credentials.authenticate(other)).project_id == project.id


async def test_archived_project_fails_at_the_next_call(store: Tenants, project: Project) -> None:
    _, secret = await store.keys.create_for_project(project.organization_id, project.id, "key")
    await store.credentials.authenticate(secret)
    await store.projects.archive(project.organization_id, project.id)
    assert await _reason(store, secret) == "archived"


async def test_rotation_revokes_every_earlier_root_key(store: Tenants) -> None:
    earlier = [(await store.keys.create_root())[1] for _ in range(2)]
    for secret in earlier:
        await store.credentials.authenticate(secret)
    _, new = await store.keys.rotate_root()
    for secret in earlier:
        assert await _reason(store, secret) == "revoked"
    assert (await store.credentials.authenticate(new)).kind is KeyKind.ROOT


async def test_key_expires_at_its_second(database: AsyncEngine, project: Project) -> None:
    now = time.time()
    clock = [now]
    store = Tenants.of(database, PEPPER, clock=lambda: clock[0])
    expires_at = int(now) + 60
    _, secret = await store.keys.create_for_project(
        project.organization_id, project.id, "key", expires_at=expires_at
    )
    clock[0] = expires_at - 0.01
    await store.credentials.authenticate(secret)
    clock[0] = expires_at
    assert await _reason(store, secret) == "expired"


async def test_revocation_whose_caller_goes_away_is_still_seen(store: Tenants, project: Project) -> None:
    key, secret = await store.keys.create_for_project(project.organization_id, project.id, "key")
    await store.credentials.authenticate(secret)
    revoking = asyncio.create_task(store.keys.revoke(project.organization_id, key.id))
    await asyncio.sleep(0)
    revoking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await revoking
    for _ in range(500):
        if not (await store.keys.listed(project.organization_id)).items:
            break
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert await _reason(store, secret) == "revoked"


async def test_look_ups_racing_a_revocation_remember_nothing_stale(store: Tenants, project: Project) -> None:
    for _ in range(20):
        key, secret = await store.keys.create_for_project(project.organization_id, project.id, "key")
        racing = [store.credentials.authenticate(secret) for _ in range(4)]
        revoking = store.keys.revoke(project.organization_id, key.id)
        await asyncio.gather(*racing, revoking, return_exceptions=True)
        assert await _reason(store, secret) == "revoked"


async def test_database_that_is_away_is_told_apart_from_a_bad_key(tmp_path: Path) -> None:
    database = open_database(f"sqlite+aiosqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}")
    try:
        store = Tenants.of(database, PEPPER)
        with pytest.raises(StorageUnavailable):
            await store.credentials.authenticate("sk-" + "a" * 48)
        with pytest.raises(StorageUnavailable):
            await store.organizations.listed()
    finally:
        await database.dispose()
        await asyncio.sleep(0.1)  # the driver's threads of failed connections end a moment later


async def test_known_keys_work_while_the_database_is_locked(
    store: Tenants, project: Project, tmp_path: Path
) -> None:
    _, secret = await store.keys.create_for_project(project.organization_id, project.id, "key")
    impatient = open_database(f"sqlite+aiosqlite:///{tmp_path / 'torpor.db'}")
    event.listen(impatient.sync_engine, "connect", _be_impatient)
    blocker = sqlite3.connect(tmp_path / "torpor.db", isolation_level=None)
    try:
        locked = Tenants.of(impatient, PEPPER)
        await locked.credentials.authenticate(secret)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable):
            await locked.organizations.create("late")
        assert (await locked.credentials.authenticate(secret)).project_id == project.id
        blocker.execute("ROLLBACK")
        assert (await locked.organizations.create("late")).slug == "late"
    finally:
        blocker.close()
        await impatient.dispose()


def _be_impatient(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA busy_timeout = 50").close()


def _known(number: int) -> KnownKey:
    principal = ProjectPrincipal(
        KeyKind.PROJECT, f"key_{number}", "org-1", "acme", "proj_1", None, ALL_SCOPES
    )
    return KnownKey(principal, None, None)


def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    cache = CredentialCache(max_keys=3, max_refused=3)
    for number in range(3):
        cache.remember(bytes([number]), _known(number), cache.generation)
    cache.known(bytes([0]))
    cache.remember(b"new", _known(9), cache.generation)
    assert [cache.known(bytes([number])) is not None for number in range(3)] == [True, False, True]
    for number in range(5):
        cache.refuse(bytes([number]), "unknown")
    assert [cache.refusal(bytes([number])) for number in range(5)] == [None, None, *["unknown"] * 3]


def test_refusal_is_forgotten_after_a_short_time() -> None:
    now = [0.0]
    cache = CredentialCache(lambda: now[0])
    cache.refuse(b"x", "revoked")
    now[0] = credential_cache.REFUSED_FOR_S - 0.1
    assert cache.refusal(b"x") == "revoked"
    now[0] = credential_cache.REFUSED_FOR_S
    assert cache.refusal(b"x") is None


def test_what_was_read_before_an_eviction_is_not_remembered_after_it() -> None:
    cache = CredentialCache()
    generation = cache.generation
    cache.forget_key("key_1")
    cache.remember(b"x", _known(1), generation)
    assert cache.known(b"x") is None
