"""Organizations, projects and keys over HTTP: OpenAI's shapes, and Torpor's own for organizations."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.authentication import authenticate
from gateway.bodies import read_json
from gateway.errors import invalid_request
from gateway.services import Services, services_of
from tenants.types import ApiKey, KeyKind, Organization, Page, Principal, Project

_MAX_NAME = 200


async def _admin(request: Request) -> tuple[Services, str]:
    """The services and the organization that the admin key belongs to."""
    principal: Principal = await authenticate(request, KeyKind.ADMIN)
    return services_of(request), principal.organization_id or ""


async def _root(request: Request) -> Services:
    await authenticate(request, KeyKind.ROOT)
    return services_of(request)


async def _fields(request: Request) -> dict[str, Any]:
    config = services_of(request).config
    return await read_json(request, config.limits, config.server.body_timeout_s)


def _text(body: dict[str, Any], name: str, *, required: bool = True) -> str | None:
    value = body.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > _MAX_NAME:
        raise invalid_request(
            f"'{name}' must be a string of 1 to {_MAX_NAME} characters.", name, "invalid_value"
        )
    return value


def _paging(request: Request) -> tuple[str | None, int]:
    raw = request.query_params.get("limit", "20")
    if not (raw.isascii() and raw.isdecimal() and len(raw) < 4) or not 1 <= int(raw) <= 100:
        raise invalid_request("'limit' must be between 1 and 100.", "limit", "invalid_value")
    return request.query_params.get("after"), int(raw)


def _page(items: list[dict[str, Any]], has_more: bool) -> Response:
    return JSONResponse(
        {
            "object": "list",
            "data": items,
            "first_id": items[0]["id"] if items else None,
            "last_id": items[-1]["id"] if items else None,
            "has_more": has_more,
        }
    )


def organization_object(organization: Organization) -> dict[str, Any]:
    """Torpor's ``organization`` object."""
    return {
        "id": organization.id,
        "object": "organization",
        "slug": organization.slug,
        "name": organization.name,
        "created_at": organization.created_at,
    }


def project_object(project: Project) -> dict[str, Any]:
    """OpenAI's ``organization.project`` object."""
    return {
        "id": project.id,
        "object": "organization.project",
        "name": project.name,
        "created_at": project.created_at,
        "archived_at": project.archived_at,
        "status": project.status,
    }


def key_object(key: ApiKey) -> dict[str, Any]:
    """OpenAI's ``organization.project.api_key`` object; the key itself is never in it."""
    return {
        "id": key.id,
        "object": "organization.project.api_key",
        "name": key.name,
        "redacted_value": key.prefix,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "owner": {
            "type": "service_account",
            "service_account": {
                "id": key.id.replace("key_", "svc_", 1),
                "object": "organization.project.service_account",
                "name": key.name,
                "role": "member",
                "created_at": key.created_at,
            },
        },
    }


async def create_organization(request: Request) -> Response:
    """``POST /v1/torpor/organizations``: answers with the first admin key, the only time it is seen."""
    services = await _root(request)
    body = await _fields(request)
    slug = _text(body, "slug") or ""
    organization, _, secret = await services.tenants.create_organization_with_key(
        slug, _text(body, "name", required=False), key_name="first admin key"
    )
    return JSONResponse({**organization_object(organization), "admin_api_key": {"value": secret}})


async def list_organizations(request: Request) -> Response:
    """``GET /v1/torpor/organizations``."""
    services = await _root(request)
    after, limit = _paging(request)
    page: Page[Organization] = await services.tenants.list_organizations(after=after, limit=limit)
    return _page([organization_object(item) for item in page.items], page.has_more)


async def revoke_organization(request: Request) -> Response:
    """``POST /v1/torpor/organizations/{id or slug}/revoke``: its projects archived, all its keys revoked."""
    services = await _root(request)
    tenants = services.tenants
    organization = await tenants.get_organization(request.path_params["organization"])
    revoked = 0
    # Admin keys first, so that nobody makes a project or a key behind the back of what follows.
    for kind in (KeyKind.ADMIN, KeyKind.PROJECT):
        while keys := (await tenants.list_keys(organization.id, kind=kind, after=None, limit=100)).items:
            for key in keys:
                await tenants.revoke_key(organization.id, key.id)
            revoked += len(keys)
    while projects := (await tenants.list_projects(organization.id, after=None, limit=100)).items:
        for project in projects:
            await tenants.archive_project(organization.id, project.id)
    return JSONResponse({**organization_object(organization), "revoked_keys": revoked})


async def create_project(request: Request) -> Response:
    """``POST /v1/organization/projects``."""
    services, organization_id = await _admin(request)
    name = _text(await _fields(request), "name") or ""
    return JSONResponse(project_object(await services.tenants.create_project(organization_id, name)))


async def list_projects(request: Request) -> Response:
    """``GET /v1/organization/projects``."""
    services, organization_id = await _admin(request)
    after, limit = _paging(request)
    archived = request.query_params.get("include_archived", "false").lower() == "true"
    page = await services.tenants.list_projects(
        organization_id, after=after, limit=limit, include_archived=archived
    )
    return _page([project_object(item) for item in page.items], page.has_more)


async def retrieve_project(request: Request) -> Response:
    """``GET /v1/organization/projects/{project}``."""
    services, organization_id = await _admin(request)
    project = await services.tenants.get_project(organization_id, request.path_params["project"])
    return JSONResponse(project_object(project))


async def archive_project(request: Request) -> Response:
    """``POST /v1/organization/projects/{project}/archive``: its keys stop working at once."""
    services, organization_id = await _admin(request)
    project = await services.tenants.archive_project(organization_id, request.path_params["project"])
    return JSONResponse(project_object(project))


async def create_service_account(request: Request) -> Response:
    """``POST .../service_accounts``: a key for a program, seen in this answer only."""
    services, organization_id = await _admin(request)
    body = await _fields(request)
    name = _text(body, "name") or ""
    expires_at = body.get("expires_at")
    if expires_at is not None and (not isinstance(expires_at, int) or isinstance(expires_at, bool)):
        raise invalid_request("'expires_at' must be in unix seconds.", "expires_at", "invalid_type")
    key, secret = await services.tenants.create_project_key(
        organization_id, request.path_params["project"], name, expires_at=expires_at
    )
    account = key_object(key)["owner"]["service_account"]
    created = {
        "object": "organization.project.service_account.api_key",
        "id": key.id,
        "name": key.name,
        "value": secret,
        "created_at": key.created_at,
    }
    return JSONResponse({**account, "api_key": created})


async def list_keys(request: Request) -> Response:
    """``GET .../api_keys``."""
    services, organization_id = await _admin(request)
    after, limit = _paging(request)
    project_id = request.path_params["project"]
    await services.tenants.get_project(organization_id, project_id)
    page = await services.tenants.list_keys(organization_id, project_id=project_id, after=after, limit=limit)
    return _page([key_object(item) for item in page.items], page.has_more)


async def retrieve_key(request: Request) -> Response:
    """``GET .../api_keys/{key}``."""
    services, organization_id = await _admin(request)
    key = await services.tenants.get_key(
        organization_id, request.path_params["key"], project_id=request.path_params["project"]
    )
    return JSONResponse(key_object(key))


async def delete_key(request: Request) -> Response:
    """``DELETE .../api_keys/{key}``: seen by the very next request."""
    services, organization_id = await _admin(request)
    key = await services.tenants.revoke_key(
        organization_id, request.path_params["key"], project_id=request.path_params["project"]
    )
    return JSONResponse({"id": key.id, "object": "organization.project.api_key.deleted", "deleted": True})
