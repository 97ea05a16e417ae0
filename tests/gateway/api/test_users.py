"""Users of organizations and projects, driven with the official client over real HTTP."""

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.admin.organization import OrganizationUser
from openai.types.admin.organization.projects import ProjectUser

from tests.gateway.app_fixture import Stage


async def test_users_of_a_project(client: AsyncOpenAI, stage: Stage) -> None:
    project_id, users = stage.tenant.project_id, client.admin.organization.projects.users
    ada = await users.create(project_id, role="member", user_id="auth0|ada", email="ada@example.com")
    assert type(ada) is ProjectUser
    assert (ada.id, ada.role, ada.email) == ("auth0|ada", "member", "ada@example.com")
    assert await users.retrieve(ada.id, project_id=project_id) == ada
    bob = await users.create(project_id, role="owner", email="bob@example.com")
    assert bob.id.startswith("user-")
    with pytest.raises(openai.BadRequestError, match="already") as caught:
        await users.create(project_id, role="owner", email="ada@example.com")
    assert caught.value.code == "already_exists"
    promoted = await users.update(ada.id, project_id=project_id, role="owner")
    assert promoted.role == "owner"
    assert [item.id async for item in users.list(project_id, limit=1)] == [ada.id, bob.id]
    gone = await users.delete(bob.id, project_id=project_id)
    assert (gone.object, gone.deleted) == ("organization.project.user.deleted", True)
    with pytest.raises(openai.NotFoundError):
        await users.retrieve(bob.id, project_id=project_id)
    assert (await client.admin.organization.users.retrieve(bob.id)).email == "bob@example.com"


async def test_users_of_an_organization(client: AsyncOpenAI, stage: Stage) -> None:
    project_id, organization = stage.tenant.project_id, client.admin.organization
    for number in range(3):
        await organization.projects.users.create(
            project_id, role="member", user_id=f"user-{number}", email=f"{number}@example.com"
        )
    listed = [item async for item in organization.users.list(limit=2)]
    assert [item.id for item in listed] == ["user-0", "user-1", "user-2"]
    assert type(listed[0]) is OrganizationUser
    assert (listed[0].role, listed[0].object) == ("reader", "organization.user")
    by_mail = await organization.users.list(emails=["1@example.com", "nobody@example.com"])
    assert [item.id for item in by_mail.data] == ["user-1"]
    assert (await organization.users.update("user-1", role="owner")).role == "owner"
    gone = await organization.users.delete("user-1")
    assert (gone.object, gone.deleted) == ("organization.user.deleted", True)
    with pytest.raises(openai.NotFoundError):
        await organization.users.retrieve("user-1")
    in_project = [item.id async for item in organization.projects.users.list(project_id)]
    assert in_project == ["user-0", "user-2"]
    back = await organization.projects.users.create(project_id, role="member", user_id="user-1")
    assert (back.id, back.email) == ("user-1", "1@example.com")
    assert (await organization.users.retrieve("user-1")).role == "reader"
    types = [item.type async for item in organization.audit_logs.list(resource_ids=["user-1"])]
    assert types == ["user.added", "user.added", "user.deleted", "user.updated", "user.added", "user.added"]


async def test_users_of_another_organization_do_not_exist(client: AsyncOpenAI, stage: Stage) -> None:
    async with stage.openai(admin_api_key=stage.other.admin_key) as other:
        theirs = other.admin.organization.projects.users
        await theirs.create(stage.other.project_id, role="member", user_id="ada")
    organization = client.admin.organization
    mine = organization.projects.users
    for attempt in (
        organization.users.retrieve("ada"),
        organization.users.update("ada", role="owner"),
        organization.users.delete("ada"),
        mine.list(stage.other.project_id),
        mine.retrieve("ada", project_id=stage.other.project_id),
        mine.retrieve("ada", project_id=stage.tenant.project_id),
        mine.create(stage.other.project_id, role="member", user_id="bob"),
    ):
        with pytest.raises(openai.NotFoundError):
            await attempt
    assert (await organization.users.list()).data == []


async def test_bad_values_of_users_are_named(client: AsyncOpenAI, stage: Stage) -> None:
    path = f"/v1/organization/projects/{stage.tenant.project_id}/users"
    await client.admin.organization.projects.users.create(
        stage.tenant.project_id, role="member", user_id="ada"
    )
    for method, where, body, param in (
        ("POST", path, {"role": "member"}, "user_id"),
        ("POST", path, {"role": "king", "user_id": "x"}, "role"),
        ("POST", path, {"user_id": "x"}, "role"),
        ("POST", path, {"role": "member", "user_id": 7}, "user_id"),
        ("POST", path, {"role": "member", "user_id": "a/b"}, "user_id"),
        ("POST", path, {"role": "member", "email": "nobody"}, "email"),
        ("POST", f"{path}/ada", {"role": "reader"}, "role"),
        ("GET", f"{path}?after=bob", None, "after"),
        ("POST", "/v1/organization/users/ada", {"role": "member"}, "role"),
        ("POST", "/v1/organization/users/ada", {"role_id": "role_1"}, "role_id"),
        ("GET", "/v1/organization/users?limit=1000", None, "limit"),
        ("GET", "/v1/organization/users?after=bob", None, "after"),
    ):
        answer = await stage.admin.request(method, where, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), (where, body)
