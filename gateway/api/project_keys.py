"""``.../service_accounts`` and ``.../api_keys`` of a project: its programs and their keys."""

import time
from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.body import Body, Lifetime, Name, read
from gateway.api.requests import admin_of, choice, page, paging, path_id, secret
from gateway.http.errors import invalid_request
from tenants.scopes import ALL, READ, SCOPES
from tenants.types import ALL_SCOPES, ApiKey, KeyKind, Project, ServiceAccount

_KEY_FIELDS = ("expires_in_seconds", "expires_at", "scopes")
_MAX_SCOPES = 100
_OPENAI_SCOPES = {"api.all": ALL, "api.all.read": READ} | {
    f"api.{scope}": scope for scope in SCOPES if scope.startswith("model.")
}
"""OpenAI's names for scopes that Torpor calls otherwise."""
_Scope = Annotated[str, Meta(extra_json_schema={"enum": sorted(SCOPES)})]


class ProjectKeyChange(Body):
    """A key's scopes, and when it expires: after seconds, or at a time in unix seconds, but not both."""

    expires_in_seconds: Lifetime | None = None
    expires_at: int | None = None
    scopes: Annotated[list[_Scope], Meta(max_length=_MAX_SCOPES)] | None = None

    def __post_init__(self) -> None:
        if self.expires_in_seconds is not None and self.expires_at is not None:
            message = "Give either 'expires_in_seconds' or 'expires_at', not both."
            raise invalid_request(message, "expires_at", "invalid_value")

    def expiry(self) -> int | None:
        """When the key is to expire, in unix seconds."""
        if self.expires_in_seconds is None:
            return self.expires_at
        return int(time.time()) + self.expires_in_seconds

    def granted(self, *, empty_is_all: bool = False) -> frozenset[str] | None:
        """The scopes by Torpor's names; None if they are missing. Raises 400 for an unknown scope."""
        if self.scopes is None:
            return None
        if not self.scopes and empty_is_all:
            return ALL_SCOPES
        result = frozenset(_OPENAI_SCOPES.get(name, name) for name in self.scopes)
        if not result or not result <= SCOPES:
            message = f"'scopes' must have at least one of {', '.join(sorted(SCOPES))}, and no others."
            raise invalid_request(message, "scopes", "invalid_value")
        return result


class NewServiceAccount(ProjectKeyChange, kw_only=True):
    """A service account to create, and what the key that comes with it opens."""

    name: Name
    create_service_account_only: bool | None = None


class ServiceAccountChange(Body):
    """A service account's new name or role."""

    name: Name | None = None
    role: Name | None = None


class NewProjectKey(ProjectKeyChange):
    """A further key of a service account."""

    name: Name | None = None


def account_object(account: ServiceAccount) -> dict[str, Any]:
    """OpenAI's ``organization.project.service_account`` object."""
    return {
        "id": account.id,
        "object": "organization.project.service_account",
        "name": account.name,
        "role": account.role,
        "created_at": account.created_at,
    }


def key_object(key: ApiKey, project: Project) -> dict[str, Any]:
    """OpenAI's ``organization.project.api_key`` object, and its ``scopes``; the key itself is not in it."""
    owner: dict[str, Any] = {"type": "service_account"}
    if key.service_account is not None:
        owner["service_account"] = account_object(key.service_account)
    return {
        "id": key.id,
        "object": "organization.project.api_key",
        "name": key.name,
        "redacted_value": key.prefix,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "owner": owner,
        "owner_project_access": _access(project),
        "scopes": sorted(key.scopes),
    }


def _access(project: Project) -> str:
    return "active" if project.status == "active" else "inactive"


def _new_key_object(key: ApiKey, value: str) -> dict[str, Any]:
    return {
        "id": key.id,
        "object": "organization.project.service_account.api_key",
        "name": key.name,
        "value": value,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "scopes": sorted(key.scopes),
    }


async def create_account(request: Request) -> Response:
    """``POST``: with a key, which is seen in this answer only, or with ``create_service_account_only`` none.

    ``scopes`` and ``expires_at`` are Torpor's own: what the key opens, and when it ends in unix seconds.
    """
    services, organization_id = await admin_of(request)
    project_id = path_id(request, "project")
    body = await read(request, NewServiceAccount)
    scopes = body.granted()
    accounts = services.tenants.service_accounts
    if body.create_service_account_only:
        for field in _KEY_FIELDS:
            if getattr(body, field) is not None:
                message = f"'{field}' needs a key, but 'create_service_account_only' creates no key."
                raise invalid_request(message, field, "invalid_value")
        account = await accounts.create(organization_id, project_id, body.name)
        return JSONResponse({**account_object(account), "api_key": None})
    account, (key, value) = await accounts.create_with_key(
        organization_id, project_id, body.name, expires_at=body.expiry(), scopes=scopes or ALL_SCOPES
    )
    return secret({**account_object(account), "api_key": _new_key_object(key, value)})


async def list_accounts(request: Request) -> Response:
    """``GET``."""
    services, organization_id = await admin_of(request)
    after, limit = paging(request)
    accounts = await services.tenants.service_accounts.listed(
        organization_id, path_id(request, "project"), after=after, limit=limit
    )
    return page([account_object(item) for item in accounts.items], accounts.has_more)


async def retrieve_account(request: Request) -> Response:
    """``GET .../{service_account}``."""
    services, organization_id = await admin_of(request)
    account = await services.tenants.service_accounts.get(
        organization_id, path_id(request, "project"), path_id(request, "service_account")
    )
    return JSONResponse(account_object(account))


async def update_account(request: Request) -> Response:
    """``POST .../{service_account}`` with another ``name`` or ``role``."""
    services, organization_id = await admin_of(request)
    body = await read(request, ServiceAccountChange)
    account = await services.tenants.service_accounts.update(
        organization_id,
        path_id(request, "project"),
        path_id(request, "service_account"),
        name=body.name,
        role=body.role,
    )
    return JSONResponse(account_object(account))


async def delete_account(request: Request) -> Response:
    """``DELETE .../{service_account}``: its keys stop working at once."""
    services, organization_id = await admin_of(request)
    account_id = path_id(request, "service_account")
    await services.tenants.service_accounts.delete(organization_id, path_id(request, "project"), account_id)
    kind = "organization.project.service_account.deleted"
    return JSONResponse({"id": account_id, "object": kind, "deleted": True})


async def create_account_key(request: Request) -> Response:
    """``POST .../{service_account}/api_keys``: a further key, which is seen in this answer only."""
    services, organization_id = await admin_of(request)
    body = await read(request, NewProjectKey)
    key, value = await services.tenants.service_accounts.create_key(
        organization_id,
        path_id(request, "project"),
        path_id(request, "service_account"),
        body.name,
        expires_at=body.expiry(),
        scopes=body.granted() or ALL_SCOPES,
    )
    return secret(_new_key_object(key, value))


async def list_keys(request: Request) -> Response:
    """``GET .../api_keys``; owners lose their access with the whole project only."""
    services, organization_id = await admin_of(request)
    after, limit = paging(request)
    project = await services.tenants.projects.get(organization_id, path_id(request, "project"))
    owner_access = choice(request, "owner_project_access", ("any", "active", "inactive"))
    keys = await services.tenants.keys.listed(
        organization_id, project_id=project.id, after=after, limit=limit
    )
    if owner_access not in ("any", _access(project)):
        return page([], has_more=False)
    return page([key_object(item, project) for item in keys.items], keys.has_more)


async def retrieve_key(request: Request) -> Response:
    """``GET .../api_keys/{key}``."""
    services, organization_id = await admin_of(request)
    project = await services.tenants.projects.get(organization_id, path_id(request, "project"))
    key = await services.tenants.keys.get(
        organization_id, path_id(request, "key"), project_id=project.id, kind=KeyKind.PROJECT
    )
    return JSONResponse(key_object(key, project))


async def update_key(request: Request) -> Response:
    """``POST .../api_keys/{key}`` with other ``scopes`` (none is all) or another expiry, from now on."""
    services, organization_id = await admin_of(request)
    body = await read(request, ProjectKeyChange)
    project = await services.tenants.projects.get(organization_id, path_id(request, "project"))
    key = await services.tenants.keys.change(
        organization_id,
        project.id,
        path_id(request, "key"),
        scopes=body.granted(empty_is_all=True),
        expires_at=body.expiry(),
    )
    return JSONResponse(key_object(key, project))


async def delete_key(request: Request) -> Response:
    """``DELETE .../api_keys/{key}``: seen by the very next request."""
    services, organization_id = await admin_of(request)
    key_id = path_id(request, "key")
    await services.tenants.keys.revoke(
        organization_id, key_id, project_id=path_id(request, "project"), kind=KeyKind.PROJECT
    )
    return JSONResponse({"id": key_id, "object": "organization.project.api_key.deleted", "deleted": True})


_PROJECT = "/v1/organization/projects/{project}"
_ACCOUNTS, _KEYS = f"{_PROJECT}/service_accounts", f"{_PROJECT}/api_keys"
_ONE_ACCOUNT, _ONE_KEY = f"{_ACCOUNTS}/{{service_account}}", f"{_KEYS}/{{key}}"
ROUTES: list[Route] = [
    Route(_ACCOUNTS, create_account, methods=["POST"]),
    Route(_ACCOUNTS, list_accounts, methods=["GET"]),
    Route(_ONE_ACCOUNT, retrieve_account, methods=["GET"]),
    Route(_ONE_ACCOUNT, update_account, methods=["POST"]),
    Route(_ONE_ACCOUNT, delete_account, methods=["DELETE"]),
    Route(f"{_ONE_ACCOUNT}/api_keys", create_account_key, methods=["POST"]),
    Route(_KEYS, list_keys, methods=["GET"]),
    Route(_ONE_KEY, retrieve_key, methods=["GET"]),
    Route(_ONE_KEY, update_key, methods=["POST"]),
    Route(_ONE_KEY, delete_key, methods=["DELETE"]),
]
