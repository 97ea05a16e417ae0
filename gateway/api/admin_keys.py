"""``/v1/organization/admin_api_keys``, and the rotation of keys of every kind of an organization's."""

import time
from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.body import Body, Lifetime, Name, read
from gateway.api.requests import admin_of, choice, page, paging, path_id, secret
from tenants.accounts.key_rotation import MAX_OVERLAP_S
from tenants.limits.rate_limits import SubjectType
from tenants.types import ApiKey, KeyKind


class NewAdminKey(Body):
    """An admin key to create, and for how many seconds it is valid."""

    name: Name
    expires_in_seconds: Lifetime | None = None

    def expiry(self) -> int | None:
        """When the key is to expire, in unix seconds."""
        return None if self.expires_in_seconds is None else int(time.time()) + self.expires_in_seconds


class KeyRotation(Body):
    """For how many seconds the old key still works."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=MAX_OVERLAP_S)] = 0


def admin_key_object(key: ApiKey) -> dict[str, Any]:
    """OpenAI's ``organization.admin_api_key`` object. Admin keys belong to the organization alone."""
    return {
        "id": key.id,
        "object": "organization.admin_api_key",
        "name": key.name,
        "redacted_value": key.prefix,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "owner": {
            "type": "user",
            "object": "organization.user",
            "id": None,
            "name": key.name,
            "created_at": key.created_at,
            "role": "owner",
        },
    }


async def create_key(request: Request) -> Response:
    """``POST``: answers with the key, the only time it is seen."""
    services, organization_id = await admin_of(request)
    body = await read(request, NewAdminKey)
    key, value = await services.tenants.keys.create_admin(
        organization_id, body.name, expires_at=body.expiry()
    )
    return secret({**admin_key_object(key), "value": value})


async def list_keys(request: Request) -> Response:
    """``GET``, the oldest first, or with ``order=desc`` the newest."""
    services, organization_id = await admin_of(request)
    after, limit = paging(request)
    keys = await services.tenants.keys.listed(
        organization_id,
        kind=KeyKind.ADMIN,
        after=after,
        limit=limit,
        newest_first=choice(request, "order", ("asc", "desc")) == "desc",
    )
    return page([admin_key_object(item) for item in keys.items], keys.has_more)


async def retrieve_key(request: Request) -> Response:
    """``GET .../{key}``."""
    services, organization_id = await admin_of(request)
    key = await services.tenants.keys.get(organization_id, path_id(request, "key"), kind=KeyKind.ADMIN)
    return JSONResponse(admin_key_object(key))


async def delete_key(request: Request) -> Response:
    """``DELETE .../{key}``: seen by the very next request. A key may delete itself."""
    services, organization_id = await admin_of(request)
    key_id = path_id(request, "key")
    await services.tenants.keys.revoke(organization_id, key_id, kind=KeyKind.ADMIN)
    return JSONResponse({"id": key_id, "object": "organization.admin_api_key.deleted", "deleted": True})


async def rotate_key(request: Request) -> Response:
    """``POST /v1/torpor/keys/{key}/rotate``: a new key, while the old one works for ``overlap_seconds``.

    Takes keys of projects and admin keys. The new one is seen in this answer only.
    """
    services, organization_id = await admin_of(request)
    overlap_s = (await read(request, KeyRotation)).overlap_seconds
    rotation = await services.tenants.keys.rotate(
        organization_id, path_id(request, "key"), overlap_s=overlap_s
    )
    key, old = rotation.key, rotation.old
    # Before the secret is sent, so it never opens more than the old one.
    await services.control.limits.read_subject(organization_id, SubjectType.KEY, key.id)
    return secret(
        {
            "id": key.id,
            "object": "torpor.key",
            "name": key.name,
            "project_id": key.project_id,
            "scopes": sorted(key.scopes),
            "created_at": key.created_at,
            "expires_at": key.expires_at,
            "value": rotation.secret,
            "replaces": {"id": old.id, "expires_at": old.expires_at},
        }
    )


_EVERY = "/v1/organization/admin_api_keys"
ROUTES: list[Route] = [
    Route(_EVERY, create_key, methods=["POST"]),
    Route(_EVERY, list_keys, methods=["GET"]),
    Route(f"{_EVERY}/{{key}}", retrieve_key, methods=["GET"]),
    Route(f"{_EVERY}/{{key}}", delete_key, methods=["DELETE"]),
    Route("/v1/torpor/keys/{key}/rotate", rotate_key, methods=["POST"]),
]
