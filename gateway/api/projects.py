"""``/v1/organization/projects``: OpenAI's projects, and which models each may use."""

from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.body import MAX_ID, ONLY_INVALID_VALUE, PRINTABLE, Body, Name, read
from gateway.api.requests import admin_of, flag, page, paging, path_id
from tenants.errors import NotFound
from tenants.types import ModelPermissions, PermissionMode, Project

_MAX_MODELS = 1000
_UNSUPPORTED = ("external_key_id", "geography", "residency")


class NewProject(Body):
    """A project to create. Names need not be unique."""

    unsupported_fields = _UNSUPPORTED
    name: Name


class ProjectChange(Body):
    """A project's new name; without one nothing changes."""

    unsupported_fields = _UNSUPPORTED
    name: Name | None = None


class ModelPermissionsChange(Body):
    """The models that a project may use, or may not use. Models need not exist yet."""

    mode: Annotated[PermissionMode, Meta(extra={**ONLY_INVALID_VALUE})]
    model_ids: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=MAX_ID)]],
        Meta(max_length=_MAX_MODELS, extra={**PRINTABLE}),
    ]


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


async def create_project(request: Request) -> Response:
    """``POST``. Names need not be unique."""
    services, organization_id = await admin_of(request)
    name = (await read(request, NewProject)).name
    return JSONResponse(project_object(await services.tenants.projects.create(organization_id, name)))


async def list_projects(request: Request) -> Response:
    """``GET``; archived ones with ``include_archived=true``."""
    services, organization_id = await admin_of(request)
    after, limit = paging(request)
    projects = await services.tenants.projects.listed(
        organization_id, after=after, limit=limit, include_archived=flag(request, "include_archived")
    )
    return page([project_object(item) for item in projects.items], projects.has_more)


async def retrieve_project(request: Request) -> Response:
    """``GET .../{project}``."""
    services, organization_id = await admin_of(request)
    project = await services.tenants.projects.get(organization_id, path_id(request, "project"))
    return JSONResponse(project_object(project))


async def update_project(request: Request) -> Response:
    """``POST .../{project}`` with another ``name``."""
    services, organization_id = await admin_of(request)
    name = (await read(request, ProjectChange)).name
    project_id = path_id(request, "project")
    if name is None:
        project = await services.tenants.projects.get(organization_id, project_id)
    else:
        project = await services.tenants.projects.rename(organization_id, project_id, name)
    return JSONResponse(project_object(project))


async def archive_project(request: Request) -> Response:
    """``POST .../{project}/archive``: its keys stop working at once."""
    services, organization_id = await admin_of(request)
    project = await services.tenants.projects.archive(organization_id, path_id(request, "project"))
    return JSONResponse(project_object(project))


def permissions_object(permissions: ModelPermissions) -> dict[str, Any]:
    """OpenAI's ``project.model_permissions`` object."""
    return {
        "object": "project.model_permissions",
        "mode": permissions.mode.value,
        "model_ids": sorted(permissions.models),
    }


async def retrieve_permissions(request: Request) -> Response:
    """``GET .../model_permissions``; 404 where the project may use every model."""
    services, organization_id = await admin_of(request)
    permissions = await services.tenants.model_permissions.get(organization_id, path_id(request, "project"))
    if permissions is None:
        raise NotFound("The project has no model permissions: it may use every model.")
    return JSONResponse(permissions_object(permissions))


async def update_permissions(request: Request) -> Response:
    """``POST .../model_permissions``: a model that is not permitted is, from now on, one that is not there.

    Models need not be there yet.
    """
    services, organization_id = await admin_of(request)
    body = await read(request, ModelPermissionsChange)
    permissions = ModelPermissions(body.mode, frozenset(body.model_ids))
    await services.tenants.model_permissions.set(organization_id, path_id(request, "project"), permissions)
    return JSONResponse(permissions_object(permissions))


async def delete_permissions(request: Request) -> Response:
    """``DELETE .../model_permissions``: the project may use every model again."""
    services, organization_id = await admin_of(request)
    if not await services.tenants.model_permissions.delete(organization_id, path_id(request, "project")):
        raise NotFound("The project has no model permissions: it may use every model.")
    return JSONResponse({"object": "project.model_permissions.deleted", "deleted": True})


_EVERY = "/v1/organization/projects"
_PATH = f"{_EVERY}/{{project}}"
_PERMISSIONS = f"{_PATH}/model_permissions"
ROUTES: list[Route] = [
    Route(_EVERY, create_project, methods=["POST"]),
    Route(_EVERY, list_projects, methods=["GET"]),
    Route(_PATH, retrieve_project, methods=["GET"]),
    Route(_PATH, update_project, methods=["POST"]),
    Route(f"{_PATH}/archive", archive_project, methods=["POST"]),
    Route(_PERMISSIONS, retrieve_permissions, methods=["GET"]),
    Route(_PERMISSIONS, update_permissions, methods=["POST"]),
    Route(_PERMISSIONS, delete_permissions, methods=["DELETE"]),
]
