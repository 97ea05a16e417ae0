"""``/v1/torpor/organizations``: the tenants of an installation, for the root key."""

from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.admin_keys import NewAdminKey, admin_key_object
from gateway.api.body import Body, Name, read
from gateway.api.requests import flag, page, paging, path_id, root_of, secret
from tenants.types import Organization

_SLUG = "^[A-Za-z0-9._-]{1,64}$"


class NewOrganization(Body):
    """An organization to create. Its slug is part of its adapters' model names and never changes."""

    slug: Annotated[Name, Meta(extra_json_schema={"pattern": _SLUG})]
    name: Name | None = None


class OrganizationChange(Body):
    """An organization's new name."""

    name: Name


def organization_object(organization: Organization) -> dict[str, Any]:
    """Torpor's ``organization`` object."""
    return {
        "id": organization.id,
        "object": "organization",
        "slug": organization.slug,
        "name": organization.name,
        "status": "active" if organization.archived_at is None else "archived",
        "created_at": organization.created_at,
        "archived_at": organization.archived_at,
    }


async def create_organization(request: Request) -> Response:
    """``POST``: answers with the first admin key, the only time it is seen."""
    services = await root_of(request)
    body = await read(request, NewOrganization)
    organization, key, value = await services.tenants.keys.create_with_organization(
        body.slug, body.name, key_name="first admin key"
    )
    return secret(
        {**organization_object(organization), "admin_api_key": {**admin_key_object(key), "value": value}}
    )


async def list_organizations(request: Request) -> Response:
    """``GET``; archived ones with ``include_archived=true``."""
    services = await root_of(request)
    after, limit = paging(request)
    organizations = await services.tenants.organizations.listed(
        after=after, limit=limit, include_archived=flag(request, "include_archived")
    )
    return page([organization_object(item) for item in organizations.items], organizations.has_more)


async def retrieve_organization(request: Request) -> Response:
    """``GET .../{id or slug}``."""
    services = await root_of(request)
    organization = await services.tenants.organizations.get(path_id(request, "organization"))
    return JSONResponse(organization_object(organization))


async def update_organization(request: Request) -> Response:
    """``POST .../{id or slug}`` with another ``name``. The slug stays: names of models hold it."""
    services = await root_of(request)
    name = (await read(request, OrganizationChange)).name
    renamed = await services.tenants.organizations.rename(path_id(request, "organization"), name)
    return JSONResponse(organization_object(renamed))


async def archive_organization(request: Request) -> Response:
    """``POST .../{id or slug}/archive``: its projects archived, all its keys revoked. Usage stays."""
    services = await root_of(request)
    archived, revoked = await services.tenants.organizations.archive(path_id(request, "organization"))
    return JSONResponse({**organization_object(archived), "revoked_keys": revoked})


async def create_admin_key(request: Request) -> Response:
    """``POST .../{id or slug}/admin_api_keys``: for an organization that has lost its last one."""
    services = await root_of(request)
    body = await read(request, NewAdminKey)
    organization = await services.tenants.organizations.get(path_id(request, "organization"))
    key, value = await services.tenants.keys.create_admin(
        organization.id, body.name, expires_at=body.expiry()
    )
    return secret({**admin_key_object(key), "value": value})


_EVERY = "/v1/torpor/organizations"
_PATH = f"{_EVERY}/{{organization}}"
ROUTES: list[Route] = [
    Route(_EVERY, create_organization, methods=["POST"]),
    Route(_EVERY, list_organizations, methods=["GET"]),
    Route(_PATH, retrieve_organization, methods=["GET"]),
    Route(_PATH, update_organization, methods=["POST"]),
    Route(f"{_PATH}/archive", archive_organization, methods=["POST"]),
    Route(f"{_PATH}/admin_api_keys", create_admin_key, methods=["POST"]),
]
