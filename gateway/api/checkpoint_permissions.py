"""``/v1/fine_tuning/checkpoints/{name}/permissions``: OpenAI's way to share a model with another project."""

from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.body import MAX_ID, PRINTABLE, Body, read
from gateway.api.requests import admin_of, choice, cursor_of, limit_of, page, path_id
from gateway.inference.call_checks import missing
from tenants.adapters.permissions import AdapterPermission

_MAX_PROJECTS = 100
_ProjectId = Annotated[str, Meta(max_length=MAX_ID, extra_json_schema={"minLength": 1})]


class NewPermissions(Body):
    """The projects that may use an adapter, by their ids."""

    project_ids: Annotated[
        list[_ProjectId],
        Meta(max_length=_MAX_PROJECTS, extra_json_schema={"minItems": 1}, extra={**PRINTABLE}),
    ]

    def __post_init__(self) -> None:
        if not self.project_ids:
            raise missing("project_ids")


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
    project_ids = (await read(request, NewPermissions)).project_ids
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
