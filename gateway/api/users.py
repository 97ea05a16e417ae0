"""``/v1/organization/users`` and ``.../projects/{id}/users``: OpenAI's users."""

from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.body import Body, Identifier, read
from gateway.api.requests import admin_of, page, paging, path_id, values_of
from gateway.http.errors import invalid_request
from tenants.accounts.users import User


class UserChange(Body):
    """A user's new role in the organization; without one nothing changes."""

    unsupported_fields = ("role_id", "developer_persona", "technical_level")
    role: Literal["owner", "reader"] | None = None


class NewProjectUser(Body, kw_only=True):
    """A user to add to a project, by ``user_id`` (the ``sub`` of the user's tokens) or ``email``."""

    user_id: Identifier | None = None
    email: Identifier | None = None
    role: Literal["owner", "member"]

    def __post_init__(self) -> None:
        if self.user_id is not None and "/" in self.user_id:
            raise invalid_request("'user_id' must not contain a '/'.", "user_id", "invalid_value")
        if self.email is not None and "@" not in self.email.strip("@"):
            raise invalid_request("'email' must be an email address.", "email", "invalid_value")


class ProjectUserChange(Body):
    """A user's new role in the project; without one nothing changes."""

    role: Literal["owner", "member"] | None = None


def user_object(user: User) -> dict[str, Any]:
    """OpenAI's ``organization.user`` object."""
    return {
        "id": user.id,
        "object": "organization.user",
        "email": user.email,
        "name": user.name,
        "role": user.role,
        "added_at": user.added_at,
        "is_service_account": False,
    }


def project_user_object(user: User) -> dict[str, Any]:
    """OpenAI's ``organization.project.user`` object."""
    return {
        "id": user.id,
        "object": "organization.project.user",
        "email": user.email,
        "name": user.name,
        "role": user.role,
        "added_at": user.added_at,
    }


async def list_users(request: Request) -> Response:
    """``GET``, or those with one of ``emails``."""
    services, organization_id = await admin_of(request)
    after, limit = paging(request)
    users = await services.tenants.users.listed(
        organization_id, emails=values_of(request, "emails"), after=after, limit=limit
    )
    return page([user_object(item) for item in users.items], users.has_more)


async def retrieve_user(request: Request) -> Response:
    """``GET .../{user}``."""
    services, organization_id = await admin_of(request)
    return JSONResponse(
        user_object(await services.tenants.users.get(organization_id, path_id(request, "user")))
    )


async def update_user(request: Request) -> Response:
    """``POST .../{user}`` with another ``role``."""
    services, organization_id = await admin_of(request)
    role = (await read(request, UserChange)).role
    user_id, users = path_id(request, "user"), services.tenants.users
    if role is None:
        return JSONResponse(user_object(await users.get(organization_id, user_id)))
    return JSONResponse(user_object(await users.update(organization_id, user_id, role)))


async def delete_user(request: Request) -> Response:
    """``DELETE .../{user}``: also out of all projects, and the user's tokens are refused from now on."""
    services, organization_id = await admin_of(request)
    user_id = path_id(request, "user")
    await services.tenants.users.remove(organization_id, user_id)
    return JSONResponse({"id": user_id, "object": "organization.user.deleted", "deleted": True})


async def create_project_user(request: Request) -> Response:
    """``POST``: by ``user_id`` (the ``sub`` of the user's tokens) or ``email``; made where it is new."""
    services, organization_id = await admin_of(request)
    body = await read(request, NewProjectUser)
    added = await services.tenants.users.add_to_project(
        organization_id, path_id(request, "project"), user_id=body.user_id, email=body.email, role=body.role
    )
    return JSONResponse(project_user_object(added))


async def list_project_users(request: Request) -> Response:
    """``GET``."""
    services, organization_id = await admin_of(request)
    after, limit = paging(request)
    users = await services.tenants.users.listed_of_project(
        organization_id, path_id(request, "project"), after=after, limit=limit
    )
    return page([project_user_object(item) for item in users.items], users.has_more)


async def retrieve_project_user(request: Request) -> Response:
    """``GET .../{user}``."""
    services, organization_id = await admin_of(request)
    user = await services.tenants.users.get_of_project(
        organization_id, path_id(request, "project"), path_id(request, "user")
    )
    return JSONResponse(project_user_object(user))


async def update_project_user(request: Request) -> Response:
    """``POST .../{user}`` with another ``role``."""
    services, organization_id = await admin_of(request)
    role = (await read(request, ProjectUserChange)).role
    ids = (organization_id, path_id(request, "project"), path_id(request, "user"))
    users = services.tenants.users
    if role is None:
        return JSONResponse(project_user_object(await users.get_of_project(*ids)))
    return JSONResponse(project_user_object(await users.update_of_project(*ids, role)))


async def delete_project_user(request: Request) -> Response:
    """``DELETE .../{user}``: the organization keeps the user."""
    services, organization_id = await admin_of(request)
    user_id = path_id(request, "user")
    await services.tenants.users.remove_from_project(organization_id, path_id(request, "project"), user_id)
    return JSONResponse({"id": user_id, "object": "organization.project.user.deleted", "deleted": True})


_EVERY, _OF_PROJECT = "/v1/organization/users", "/v1/organization/projects/{project}/users"
ROUTES: list[Route] = [
    Route(_EVERY, list_users, methods=["GET"]),
    Route(f"{_EVERY}/{{user}}", retrieve_user, methods=["GET"]),
    Route(f"{_EVERY}/{{user}}", update_user, methods=["POST"]),
    Route(f"{_EVERY}/{{user}}", delete_user, methods=["DELETE"]),
    Route(_OF_PROJECT, create_project_user, methods=["POST"]),
    Route(_OF_PROJECT, list_project_users, methods=["GET"]),
    Route(f"{_OF_PROJECT}/{{user}}", retrieve_project_user, methods=["GET"]),
    Route(f"{_OF_PROJECT}/{{user}}", update_project_user, methods=["POST"]),
    Route(f"{_OF_PROJECT}/{{user}}", delete_project_user, methods=["DELETE"]),
]
