"""What is changed in one process is seen by the next request in every other."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.changes import ChangeLog
from tenants.errors import InvalidCredential
from tenants.store import TenantStore
from tenants.types import ModelPermissions, PermissionMode, Principal
from tests.tenants.conftest import PEPPER
from tests.tenants.issuers import Stage as IssuerStage


class Two(NamedTuple):
    """The stores of two processes, and a key that the second of them has in memory."""

    first: TenantStore
    second: TenantStore
    principal: Principal
    secret: str

    @property
    def place(self) -> tuple[str, str]:
        """The key's organization and project."""
        return self.principal.organization_id or "", self.principal.project_id or ""

    async def refused(self) -> str:
        """Why the second process refuses the key."""
        assert self.second.known(self.secret) is None
        with pytest.raises(InvalidCredential) as caught:
            await self.second.authenticate(self.secret)
        return caught.value.reason


@pytest.fixture
async def two(database: AsyncEngine, tmp_path: Path) -> AsyncIterator[Two]:
    logs = [ChangeLog(tmp_path / "changes") for _ in range(2)]
    first, second = (TenantStore(database, PEPPER, changes=log) for log in logs)
    organization = await first.create_organization("acme")
    project = await first.create_project(organization.id, "search")
    _, secret = await first.create_project_key(organization.id, project.id, "key")
    principal = await second.authenticate(secret)
    assert second.known(secret) == principal
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
    assert two.second.known(two.secret) is None
    principal = await two.second.authenticate(two.secret)
    assert (principal.may_use("small"), principal.may_use("large")) == (True, False)
    await two.first.model_permissions.delete(*two.place)
    assert (await two.second.authenticate(two.secret)).may_use("large")


async def test_scopes_and_expiry(two: Two) -> None:
    key_id = two.principal.key_id
    await two.first.change_key(*two.place, key_id, scopes=frozenset({"model.read"}))
    assert (await two.second.authenticate(two.secret)).scopes == {"model.read"}


async def test_a_rotation_without_overlap(two: Two) -> None:
    rotation = await two.first.rotate_key(two.place[0], two.principal.key_id, overlap_s=0)
    assert await two.refused() == "revoked"
    principal = await two.second.authenticate(rotation.secret)
    assert (principal.key_id, principal.project_id) == (rotation.key.id, two.place[1])
    assert rotation.key.service_account == rotation.old.service_account


async def test_an_archived_organization(two: Two) -> None:
    _, revoked = await two.first.archive_organization("acme")
    assert revoked == 1
    assert await two.refused() == "revoked"


async def test_a_removed_user_is_refused_until_it_is_added_again(stage: IssuerStage) -> None:
    project, users = stage.project, stage.store.users
    token = stage.token()
    user_id = (await stage.store.authenticate(token)).user_id or ""
    place = (project.organization_id, project.id)
    await users.add_to_project(*place, user_id=user_id, email=None, role="member")
    assert await stage.store.authenticate(token)
    await users.remove(project.organization_id, user_id)
    for again in (token, stage.token({"jti": "another"})):
        assert stage.store.known(again) is None
        with pytest.raises(InvalidCredential, match="removed"):
            await stage.store.authenticate(again)
    assert await stage.store.authenticate(stage.token({"sub": "somebody else"}))
    await users.add_to_project(*place, user_id=user_id, email=None, role="member")
    assert (await stage.store.authenticate(token)).user_id == user_id
