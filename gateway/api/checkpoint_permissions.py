"""``/v1/fine_tuning/checkpoints/{name}/permissions``: OpenAI's way to share a model with another project."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.requests import admin_of, choice, cursor_of, fields_of, limit_of, page, path_id, texts
from gateway.http.errors import invalid_request
from tenants.adapters.permissions import AdapterPermission

_MAX_ID = 256


def permission_object(permission: AdapterPermission) -> dict[str, Any]:
    """OpenAI's ``checkpoint.permission`` object."""
    return {
        "id": permission.id,
        "object": "checkpoint.permission",
        "created_at": permission.created_at,
        "project_id": permission.project_id,
    }


async def create_permissions(request: Request) -> Response:
    """``POST``: all of ``project_ids`` may use the adapter from now on, or none where one cannot."""
    services, organization_id = await admin_of(request)
    project_ids = texts(await fields_of(request, ("project_ids",)), "project_ids")
    if not project_ids:
        message = "Missing required parameter: 'project_ids'."
        raise invalid_request(message, "project_ids", "missing_required_parameter")
    if not all(len(project_id) <= _MAX_ID and project_id.isprintable() for project_id in project_ids):
        raise invalid_request("'project_ids' must be ids of projects.", "project_ids", "invalid_value")
    name = path_id(request, "checkpoint")
    permissions = await services.adapters.permissions.share(organization_id, name, project_ids)
    return page([permission_object(project_id) for project_id in permissions], has_more=False)


async def list_permissions(request: Request) -> Response:
    """``GET``, the newest first; also the deprecated ``retrieve`` of the official client."""
    services, organization_id = await admin_of(request)
    permissions = await services.adapters.permissions.listed(
        organization_id,
        path_id(request, "checkpoint"),
        project_id=cursor_of(request, "project_id"),
        after=cursor_of(request),
        limit=limit_of(request),
        newest_first=choice(request, "order", ("descending", "ascending")) == "descending",
    )
    return page([permission_object(permission) for permission in permissions.items], permissions.has_more)


async def delete_permission(request: Request) -> Response:
    """``DELETE .../{permission}``: revokes the project's permission to use the adapter."""
    services, organization_id = await admin_of(request)
    permission_id = path_id(request, "permission")
    await services.adapters.permissions.revoke(organization_id, path_id(request, "checkpoint"), permission_id)
    return JSONResponse({"id": permission_id, "object": "checkpoint.permission", "deleted": True})


_EVERY = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
ROUTES: list[Route] = [
    Route(_EVERY, create_permissions, methods=["POST"]),
    Route(_EVERY, list_permissions, methods=["GET"]),
    Route(f"{_EVERY}/{{permission}}", delete_permission, methods=["DELETE"]),
]
