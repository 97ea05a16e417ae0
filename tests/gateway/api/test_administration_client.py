"""The administration, driven with the official client over real HTTP."""

import time
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai._resource import SyncAPIResource
from openai.types.admin.organization import AdminAPIKey, Project
from openai.types.admin.organization.projects import (
    ProjectAPIKey,
    ProjectModelPermissions,
    ProjectServiceAccount,
)
from starlette.routing import Match

from gateway.api.unsupported import UNSUPPORTED
from gateway.app import ROUTES
from tests.gateway.app_fixture import Stage


async def test_projects(client: AsyncOpenAI, stage: Stage) -> None:
    projects = client.admin.organization.projects
    created = await projects.create(name="search")
    assert type(created) is Project
    assert (created.object, created.name, created.status, created.archived_at) == (
        "organization.project", "search", "active", None,
    )  # fmt: skip
    assert await projects.retrieve(created.id) == created
    renamed = await projects.update(created.id, name="find")
    assert (renamed.id, renamed.name) == (created.id, "find")
    assert await projects.update(created.id) == renamed
    more = [(await projects.create(name="find")).id for _ in range(4)]
    listed = [item.id async for item in projects.list(limit=2)]
    assert listed == [stage.tenant.project_id, created.id, *sorted(more, key=listed.index)]
    assert sorted(listed[2:]) == sorted(more)
    archived = await projects.archive(created.id)
    assert archived.status == "archived"
    assert archived.archived_at is not None
    assert await projects.archive(created.id) == archived
    assert created.id not in [item.id async for item in projects.list()]
    assert created.id in [item.id async for item in projects.list(include_archived=True)]


async def test_an_archived_projects_key_fails_at_the_next_request(client: AsyncOpenAI, stage: Stage) -> None:
    projects = client.admin.organization.projects
    project_id = stage.tenant.project_id
    assert await stage.status(stage.tenant.key) == 200
    await projects.archive(project_id)
    assert await stage.status(stage.tenant.key) == 401
    late: list[Any] = [
        projects.update(project_id, name="late"),
        projects.service_accounts.create(project_id, name="late"),
        projects.model_permissions.update(project_id, mode="allow_list", model_ids=[]),
        projects.api_keys.update(stage.tenant.key_id, project_id=project_id, scopes=["model.read"]),
        projects.spend_limit.update(project_id, currency="USD", interval="month", threshold_amount=1),
        projects.rate_limits.update_rate_limit("rl-near", project_id=project_id, max_requests_per_1_minute=1),
    ]
    for attempt in late:
        with pytest.raises(openai.BadRequestError) as caught:
            await attempt
        assert caught.value.param == "project_id"
    keys = [item async for item in projects.api_keys.list(project_id)]
    assert [item.owner_project_access for item in keys] == ["inactive"]
    active = await projects.api_keys.list(project_id, owner_project_access="active")
    assert active.data == []


async def test_service_accounts_and_their_keys(client: AsyncOpenAI, stage: Stage) -> None:
    project_id = stage.tenant.project_id
    accounts = client.admin.organization.projects.service_accounts
    keys = client.admin.organization.projects.api_keys
    created = await accounts.create(project_id, name="indexer", expires_in_seconds=3600)
    assert (created.object, created.role, created.name) == (
        "organization.project.service_account",
        "member",
        "indexer",
    )
    assert created.api_key is not None
    assert created.api_key.expires_at == pytest.approx(time.time() + 3600, abs=5)
    assert created.api_key.object == "organization.project.service_account.api_key"
    assert await stage.status(created.api_key.value) == 200
    displayed = await keys.retrieve(created.api_key.id, project_id=project_id)
    assert type(displayed) is ProjectAPIKey
    assert displayed.owner.service_account is not None
    assert (displayed.owner.type, displayed.owner.service_account.id) == ("service_account", created.id)
    assert displayed.owner_project_access == "active"
    assert displayed.redacted_value == f"{created.api_key.value[:7]}...{created.api_key.value[-4:]}"
    assert created.api_key.value not in displayed.to_json()

    bare = await accounts.create(project_id, name="bare", create_service_account_only=True)
    assert (bare.api_key, bare.role) == (None, "none")
    changed = await accounts.update(bare.id, project_id=project_id, name="reader", role="owner")
    assert type(changed) is ProjectServiceAccount
    assert (changed.name, changed.role) == ("reader", "owner")
    assert await accounts.retrieve(bare.id, project_id=project_id) == changed
    further = await accounts.api_keys.create(bare.id, project_id=project_id, scopes=["api.model.read"])
    assert (further.name, further.expires_at) == ("reader", None)
    assert await stage.status(further.value) == 200
    async with stage.client(further.value) as http:
        refused = await http.post("/v1/chat/completions", json={"model": "near", "messages": []})
    assert refused.status_code == 403

    listed = [item async for item in accounts.list(project_id, limit=1)]
    assert [item.name for item in listed] == ["key", "indexer", "reader"]
    every = [item.id async for item in keys.list(project_id, limit=1)]
    assert every == [stage.tenant.key_id, created.api_key.id, further.id]
    gone = await accounts.delete(created.id, project_id=project_id)
    assert (gone.id, gone.object, gone.deleted) == (
        created.id, "organization.project.service_account.deleted", True,
    )  # fmt: skip
    assert await stage.status(created.api_key.value) == 401
    assert [item.id async for item in keys.list(project_id)] == [stage.tenant.key_id, further.id]
    for attempt in (
        accounts.retrieve(created.id, project_id=project_id),
        accounts.delete(created.id, project_id=project_id),
        keys.retrieve(created.api_key.id, project_id=project_id),
    ):
        with pytest.raises(openai.NotFoundError):
            await attempt


async def test_scopes_and_expiry_of_a_key_change_at_the_next_request(
    client: AsyncOpenAI, stage: Stage
) -> None:
    tenant, keys = stage.tenant, client.admin.organization.projects.api_keys
    assert await stage.status(tenant.key) == 200
    narrowed = await keys.update(tenant.key_id, project_id=tenant.project_id, scopes=["usage.read"])
    assert narrowed.to_dict()["scopes"] == ["usage.read"]
    assert await stage.status(tenant.key) == 403
    read_only = await keys.update(tenant.key_id, project_id=tenant.project_id, scopes=["api.all.read"])
    assert read_only.to_dict()["scopes"] == ["read"]
    assert await stage.status(tenant.key) == 200
    opened = await keys.update(tenant.key_id, project_id=tenant.project_id, scopes=[], expires_in_seconds=60)
    assert opened.to_dict()["scopes"] == ["all"]
    assert opened.expires_at is not None
    stage.services.tenants.credentials._clock = lambda: opened.expires_at or 0
    assert await stage.status(tenant.key) == 401
    await stage.expire(tenant.key_id)
    with pytest.raises(openai.BadRequestError, match="expired") as caught:
        await keys.update(tenant.key_id, project_id=tenant.project_id, expires_in_seconds=60)
    assert caught.value.param == "key_id"
    gone = await keys.delete(tenant.key_id, project_id=tenant.project_id)
    assert (gone.object, gone.deleted) == ("organization.project.api_key.deleted", True)
    with pytest.raises(openai.NotFoundError):
        await keys.delete(tenant.key_id, project_id=tenant.project_id)


async def test_admin_api_keys(client: AsyncOpenAI, stage: Stage) -> None:
    admin_keys = client.admin.organization.admin_api_keys
    created = await admin_keys.create(name="terraform", expires_in_seconds=60)
    assert created.value.startswith("sk-admin-")
    assert created.expires_at == pytest.approx(time.time() + 60, abs=5)
    displayed = await admin_keys.retrieve(created.id)
    assert type(displayed) is AdminAPIKey
    assert (displayed.name, displayed.object) == ("terraform", "organization.admin_api_key")
    forever = await admin_keys.create(name="forever")
    assert forever.expires_at is None
    oldest_first = [item.id async for item in admin_keys.list(limit=1)]
    assert oldest_first[1:] == [created.id, forever.id]
    newest_first = [item.id async for item in admin_keys.list(limit=2, order="desc")]
    assert newest_first == oldest_first[::-1]
    async with stage.openai(admin_api_key=created.value) as other:
        assert len([item async for item in other.admin.organization.projects.list()]) == 1
        gone = await other.admin.organization.admin_api_keys.delete(created.id)
        assert (gone.object, gone.deleted) == ("organization.admin_api_key.deleted", True)
        with pytest.raises(openai.AuthenticationError):
            await other.admin.organization.projects.list()
    with pytest.raises(openai.NotFoundError):
        await admin_keys.retrieve(stage.tenant.key_id)


async def test_limits_of_the_organization_work_with_the_client(client: AsyncOpenAI, stage: Stage) -> None:
    organization, project_id = client.admin.organization, stage.tenant.project_id
    limited = await organization.projects.rate_limits.update_rate_limit(
        "rl-near", project_id=project_id, max_requests_per_1_minute=7
    )
    assert limited.max_requests_per_1_minute == 7
    spend = await organization.spend_limit.update(currency="USD", interval="month", threshold_amount=500)
    assert spend.threshold_amount == 500
    ours = await organization.projects.spend_limit.update(
        project_id, currency="USD", interval="month", threshold_amount=5
    )
    assert ours.threshold_amount == 5


async def test_a_model_that_is_not_permitted_does_not_exist(client: AsyncOpenAI, stage: Stage) -> None:
    permissions = client.admin.organization.projects.model_permissions
    project_id = stage.tenant.project_id

    async def visible() -> list[str]:
        return [model.id async for model in client.models.list()]

    async def refusal(model: str) -> bytes:
        response = await stage.http.post(
            "/v1/chat/completions", json={"model": model, "messages": [{"role": "user", "content": "?"}]}
        )
        assert response.status_code == 404
        return response.content.replace(model.encode(), b"MODEL")

    with pytest.raises(openai.NotFoundError):
        await permissions.retrieve(project_id)
    assert await visible() == ["near", "away", "far"]
    created = await permissions.update(project_id, mode="allow_list", model_ids=["near", "later"])
    assert type(created) is ProjectModelPermissions
    assert (created.mode, created.api_model_ids) == ("allow_list", ["later", "near"])
    assert await visible() == ["near"]
    assert await refusal("away") == await refusal("unknown")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("away")
    await permissions.update(project_id, mode="deny_list", model_ids=["near"])
    assert (await permissions.retrieve(project_id)).mode == "deny_list"
    assert await visible() == ["away", "far"]
    minted = await stage.http.post("/v1/torpor/tokens", json={"scopes": ["model.read"]})
    assert await stage.status(minted.json()["value"], "/v1/models/near") == 404
    assert (await permissions.delete(project_id)).deleted
    assert await visible() == ["near", "away", "far"]
    assert await stage.status(minted.json()["value"], "/v1/models/near") == 200
    with pytest.raises(openai.NotFoundError):
        await permissions.delete(project_id)


async def test_organizations_are_the_root_keys(root: httpx.AsyncClient, stage: Stage) -> None:
    path = "/v1/torpor/organizations"
    answer = await root.post(path, json={"slug": "umbrella", "name": "Umbrella Ltd"})
    assert answer.headers["cache-control"] == "no-store"
    created = answer.json()
    async with stage.openai(admin_api_key=created["admin_api_key"]["value"]) as client:
        project = await client.admin.organization.projects.create(name="labs")
        account = await client.admin.organization.projects.service_accounts.create(project.id, name="a")
        assert account.api_key is not None
        assert await stage.status(account.api_key.value) == 200
        again = await root.post(path, json={"slug": "umbrella"})
        assert (again.status_code, again.json()["error"]["code"]) == (400, "already_exists")
        renamed = (await root.post(f"{path}/umbrella", json={"name": "Umbrella"})).json()
        assert (renamed["id"], renamed["name"], renamed["slug"]) == (created["id"], "Umbrella", "umbrella")
        assert (await root.get(f"{path}/{created['id']}")).json() == renamed
        spare = (await root.post(f"{path}/umbrella/admin_api_keys", json={"name": "spare"})).json()
        assert await stage.status(spare["value"], "/v1/organization/projects") == 200
        archived = (await root.post(f"{path}/umbrella/archive")).json()
        assert (archived["status"], archived["revoked_keys"]) == ("archived", 3)
        assert await stage.status(account.api_key.value) == 401
        with pytest.raises(openai.AuthenticationError):
            await client.admin.organization.projects.list()
    assert (await root.post(f"{path}/umbrella/archive")).json()["revoked_keys"] == 0
    for body, call in (({"name": "late"}, ""), ({"name": "late"}, "/admin_api_keys")):
        late = await root.post(f"{path}/umbrella{call}", json=body)
        assert (late.status_code, late.json()["error"]["param"]) == (400, "organization")
    slugs = [item["slug"] for item in (await root.get(path)).json()["data"]]
    assert slugs == ["acme", "other"]
    every = (await root.get(path, params={"include_archived": "true", "limit": 2})).json()
    assert ([item["slug"] for item in every["data"]], every["has_more"]) == (["acme", "other"], True)
    rest = (await root.get(path, params={"include_archived": "true", "after": every["last_id"]})).json()
    assert [item["id"] for item in rest["data"]] == [created["id"]]


async def test_what_there_is_nothing_behind_is_a_clear_501(client: AsyncOpenAI, stage: Stage) -> None:
    organization, project_id = client.admin.organization, stage.tenant.project_id
    attempts: list[Any] = [
        organization.invites.create(email="a@example.com", role="reader"),
        organization.groups.create(name="g"),
        organization.roles.list(),
        organization.certificates.list(),
        organization.data_retention.retrieve(),
        organization.users.roles.list("user"),
        organization.projects.hosted_tool_permissions.retrieve(project_id),
        organization.projects.service_tier_settings.retrieve(project_id),
        organization.projects.certificates.list(project_id),
        organization.projects.groups.list(project_id),
        organization.projects.roles.list(project_id),
        organization.workload_identity_providers.list(),
        organization.external_keys.list(),
        organization.external_storage.list(),
    ]
    for attempt in attempts:
        with pytest.raises(openai.InternalServerError) as caught:
            await attempt
        assert caught.value.status_code == 501
        assert caught.value.code == "not_supported"
        assert caught.value.response.headers["x-should-retry"] == "false"
    documented = (Path(__file__).parents[3] / "docs/how-to/administration.md").read_text()
    for path in UNSUPPORTED:
        displayed = path.removeprefix("/v1").replace("{project}", "{id}").replace("{user}", "{id}")
        assert f"`{displayed}`" in documented


def test_every_method_of_the_client_has_a_route() -> None:
    """Whatever the official client can send is answered by an endpoint, be it with a 501."""
    sent: list[tuple[str, str]] = []

    def note(request: httpx2.Request) -> httpx2.Response:
        sent.append((request.method, request.url.path))
        return httpx2.Response(400, json={})

    transport = httpx2.Client(transport=httpx2.MockTransport(note))
    with OpenAI(admin_api_key="a", api_key="b", max_retries=0, http_client=transport) as official:
        for method in _methods(official.admin.organization):
            names = [name for name in signature(method).parameters if not name.startswith("extra_")]
            with pytest.raises(openai.BadRequestError):
                method(**{name: "x" for name in names if name != "timeout"})
    assert len(sent) > 130
    routes = [route for route in ROUTES if route.methods is not None]
    for called, path in sent:
        scope = {"type": "http", "method": called, "path": path, "root_path": ""}
        assert any(route.matches(scope)[0] is Match.FULL for route in routes), (called, path)


def _methods(resource: SyncAPIResource) -> Iterator[Callable[..., Any]]:
    for name in dir(type(resource)):
        if name.startswith("_") or name in ("with_raw_response", "with_streaming_response"):
            continue
        member = getattr(resource, name)
        if isinstance(member, SyncAPIResource):
            yield from _methods(member)
        elif callable(member):
            yield member


async def test_the_wrong_kind_of_key_is_refused(stage: Stage, root: httpx.AsyncClient) -> None:
    async with stage.openai(admin_api_key=stage.tenant.key) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.admin.organization.projects.list()
    assert (await root.get("/v1/organization/projects")).status_code == 403
    assert (await stage.admin.get("/v1/torpor/organizations")).status_code == 403
