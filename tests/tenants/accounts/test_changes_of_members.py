"""What is changed in one process is seen by the next request in every other."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.accounts.change_log import ChangeLog
from tenants.accounts.key_rotation import Rotation
from tenants.errors import InvalidCredential, NotFound
from tenants.store import Tenants
from tenants.tables import api_keys, projects
from tenants.types import ModelPermissions, PermissionMode, Principal
from tests.tenants.conftest import PEPPER
from tests.tenants.issuers import Stage as IssuerStage


class Two(NamedTuple):
    """The stores of two processes, and a key that the second of them has in memory."""

    first: Tenants
    second: Tenants
    principal: Principal
    secret: str

    @property
    def place(self) -> tuple[str, str]:
        """The key's organization and project."""
        return self.principal.organization_id or "", self.principal.project_id or ""

    async def refused(self) -> str:
        """Why the second process refuses the key."""
        assert self.second.credentials.known(self.secret) is None
        with pytest.raises(InvalidCredential) as caught:
            await self.second.credentials.authenticate(self.secret)
        return caught.value.reason


@pytest.fixture
async def two(database: AsyncEngine, tmp_path: Path) -> AsyncIterator[Two]:
    logs = [ChangeLog(tmp_path / "changes") for _ in range(2)]
    first, second = (Tenants.of(database, PEPPER, changes=log) for log in logs)
    organization = await first.organizations.create("acme")
    project = await first.projects.create(organization.id, "search")
    _, secret = await first.keys.create_for_project(organization.id, project.id, "key")
    principal = await second.credentials.authenticate(secret)
    assert second.credentials.known(secret) == principal
    yield Two(first, second, principal, secret)
    for log in logs:
        log.close()


async def test_a_deleted_account(two: Two) -> None:
    (account,) = (await two.first.service_accounts.listed(*two.place)).items
    await two.first.service_accounts.delete(*two.place, account.id)
    assert await two.refused() == "revoked"


async def test_permissions_of_models(two: Two) -> None:
    allowed = ModelPermissions(PermissionMode.ALLOW, frozenset({"small"}))
    await two.first.model_permissions.set(*two.place, allowed)
    assert two.second.credentials.known(two.secret) is None
    principal = await two.second.credentials.authenticate(two.secret)
    assert (principal.may_use("small"), principal.may_use("large")) == (True, False)
    await two.first.model_permissions.delete(*two.place)
    assert (await two.second.credentials.authenticate(two.secret)).may_use("large")


async def test_scopes_and_expiry(two: Two) -> None:
    key_id = two.principal.key_id
    await two.first.keys.change(*two.place, key_id, scopes=frozenset({"model.read"}))
    assert (await two.second.credentials.authenticate(two.secret)).scopes == {"model.read"}


async def test_a_rotation_without_overlap(two: Two) -> None:
    rotation = await two.first.keys.rotate(two.place[0], two.principal.key_id, overlap_s=0)
    assert await two.refused() == "revoked"
    principal = await two.second.credentials.authenticate(rotation.secret)
    assert (principal.key_id, principal.project_id) == (rotation.key.id, two.place[1])
    assert rotation.key.service_account == rotation.old.service_account


async def test_an_archived_organization(two: Two) -> None:
    _, revoked = await two.first.organizations.archive("acme")
    assert revoked == 1
    assert await two.refused() == "revoked"


async def test_what_is_made_while_its_organization_is_archived_opens_nothing(
    two: Two, database: AsyncEngine
) -> None:
    _, admin_secret = await two.first.keys.create_admin(two.place[0], "late")
    await two.first.organizations.archive("acme")
    async with database.begin() as connection:
        await connection.execute(update(api_keys).values(revoked_ms=None))
        await connection.execute(update(projects).values(archived_ms=None))
    for secret in (two.secret, admin_secret):
        with pytest.raises(InvalidCredential) as caught:
            await two.second.credentials.authenticate(secret)
        assert caught.value.reason == "archived"


async def test_a_rotation_never_prolongs_the_old_key(two: Two) -> None:
    key_id = two.principal.key_id
    short = await two.first.keys.rotate(two.place[0], key_id, overlap_s=10)
    long = await two.first.keys.rotate(two.place[0], key_id, overlap_s=1000)
    assert short.old.expires_at == long.old.expires_at
    assert {key.id for key in (await two.first.keys.listed(two.place[0])).items} == {
        key_id, short.key.id, long.key.id,
    }  # fmt: skip


async def test_rotation_and_revocation_at_once_leave_no_successor(two: Two) -> None:
    key_id, organization_id = two.principal.key_id, two.place[0]
    rotations = [two.first.keys.rotate(organization_id, key_id, overlap_s=0) for _ in range(8)]
    done = await asyncio.gather(
        *rotations, two.second.keys.revoke(organization_id, key_id), return_exceptions=True
    )
    won = [item for item in done if not isinstance(item, BaseException)]
    assert len(won) == 1
    assert all(isinstance(item, NotFound) for item in done if isinstance(item, BaseException))
    left = (await two.first.keys.listed(organization_id)).items
    assert [key.id for key in left] == [item.key.id for item in won if isinstance(item, Rotation)]


async def test_a_removed_user_is_refused_until_it_is_added_again(stage: IssuerStage) -> None:
    project, users = stage.project, stage.store.users
    token = stage.token()
    user_id = (await stage.store.credentials.authenticate(token)).user_id or ""
    position = (project.organization_id, project.id)
    await users.add_to_project(*position, user_id=user_id, email=None, role="member")
    assert await stage.store.credentials.authenticate(token)
    await users.remove(project.organization_id, user_id)
    for again in (token, stage.token({"jti": "another"})):
        assert stage.store.credentials.known(again) is None
        with pytest.raises(InvalidCredential, match="removed"):
            await stage.store.credentials.authenticate(again)
    assert await stage.store.credentials.authenticate(stage.token({"sub": "another user"}))
    await users.add_to_project(*position, user_id=user_id, email=None, role="member")
    assert (await stage.store.credentials.authenticate(token)).user_id == user_id
