"""``/v1/torpor/adapters``: a project's adapters, from their upload to their end."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.authentication import act_as_caller, authenticate_member, authenticate_project
from gateway.api.requests import page, paging
from gateway.http.errors import insufficient_scope, model_not_found, shutting_down
from gateway.services import Services, services_of
from tenants.adapters.index import RegisteredAdapter
from tenants.errors import NotFound
from tenants.scopes import FINE_TUNING
from tenants.types import KeyKind, OrganizationPrincipal, ProjectPrincipal

_READ = f"{FINE_TUNING}.read"
_MAX_NAME = 256


def adapter_object(adapter: RegisteredAdapter) -> dict[str, Any]:
    """Torpor's ``torpor.adapter`` object. Its ``id`` is the name under which it is asked for."""
    return {
        "id": adapter.name,
        "object": "torpor.adapter",
        "created_at": adapter.created_at,
        "base_model": adapter.base_model,
        "suffix": adapter.suffix,
        "visibility": "project" if adapter.user_id is None else "user",
        "project_id": adapter.project_id,
        "user_id": adapter.user_id,
        "rank": adapter.rank,
        "bytes": adapter.size_bytes,
        "digest": adapter.digest,
        "status": "ready",
    }


async def create_adapter(request: Request) -> Response:
    """``POST``, multipart: ``base_model``, ``suffix``, ``visibility``, ``file``, ``config``.

    Answers when the adapter is durable and its canary has been recorded, which may take a wake of an engine.
    """
    principal = await authenticate_project(request, scope=FINE_TUNING)
    services = services_of(request)
    if services.draining:
        raise shutting_down()
    act_as_caller(request, principal)
    adapter = await services.adapters.register(request, principal, services.catalog)
    return JSONResponse(adapter_object(adapter))


async def list_adapters(request: Request) -> Response:
    """``GET``: the project's and the user's own, the oldest first; the organization's for its admin key."""
    principal = await authenticate_member(request, KeyKind.PROJECT, KeyKind.ADMIN, scope=_READ)
    after, limit = paging(request)
    adapters = await services_of(request).adapters.registry.listed(principal, after=after, limit=limit)
    return page([adapter_object(adapter) for adapter in adapters.items], adapters.has_more)


async def retrieve_adapter(request: Request) -> Response:
    """``GET .../{adapter}``: also one that another project shares."""
    principal = await authenticate_member(request, KeyKind.PROJECT, KeyKind.ADMIN, scope=_READ)
    adapter = await _found(services_of(request), principal, request.path_params["adapter"])
    return JSONResponse(adapter_object(adapter))


async def delete_adapter(request: Request) -> Response:
    """``DELETE .../{adapter}``: no request may use it from now on."""
    principal = await authenticate_member(request, KeyKind.PROJECT, KeyKind.ADMIN, scope=FINE_TUNING)
    services = services_of(request)
    adapter = await _found(services, principal, request.path_params["adapter"])
    await delete_owned(request, services, principal, adapter)
    return JSONResponse({"id": adapter.name, "object": "torpor.adapter.deleted", "deleted": True})


async def delete_owned(
    request: Request, services: Services, principal: OrganizationPrincipal, adapter: RegisteredAdapter
) -> None:
    """Delete an adapter that the principal sees. Raises 403 where another project only shares it."""
    if isinstance(principal, ProjectPrincipal) and adapter.project_id != principal.project_id:
        raise insufficient_scope("The adapter belongs to another project, which alone can delete it.")
    act_as_caller(request, principal)
    try:
        await services.adapters.delete(adapter)
    except NotFound:
        raise model_not_found(adapter.name) from None


async def _found(services: Services, principal: OrganizationPrincipal, name: str) -> RegisteredAdapter:
    """Look up an adapter that the caller may see. Raises 404 ``model_not_found`` for any other."""
    registry = services.adapters.registry
    if isinstance(principal, ProjectPrincipal):
        adapter = registry.index.find(principal, name)
        if adapter is None or not principal.may_use(name, adapter.base_model):
            raise model_not_found(name)
        return adapter
    if len(name) > _MAX_NAME or not name.isprintable():
        raise model_not_found(name)
    try:
        return await registry.of_organization(principal.organization_id, name)
    except NotFound:
        raise model_not_found(name) from None


_EVERY = "/v1/torpor/adapters"
_PATH = f"{_EVERY}/{{adapter}}"
ROUTES: list[Route] = [
    Route(_EVERY, create_adapter, methods=["POST"]),
    Route(_EVERY, list_adapters, methods=["GET"]),
    Route(_PATH, retrieve_adapter, methods=["GET"]),
    Route(_PATH, delete_adapter, methods=["DELETE"]),
]
