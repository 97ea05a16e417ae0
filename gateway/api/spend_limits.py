"""Monthly spend limits over HTTP, in OpenAI's shape."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.requests import admin_of, bad_value, owner_kind, project_of, read_body
from gateway.services import Services
from tenants.errors import NotFound
from tenants.limits.budgets import Budgets
from tenants.limits.spend_limits import MAX_CENTS


def spend_limit_object(kind: str, subject_id: str, cents: int, budgets: Budgets) -> dict[str, Any]:
    """OpenAI's ``project.spend_limit`` or ``organization.spend_limit`` object."""
    return {
        "object": f"{kind}.spend_limit",
        "threshold_amount": cents,
        "currency": "USD",
        "interval": "month",
        "enforcement": {"status": "enforcing" if budgets.exhausted(subject_id) else "inactive"},
    }


async def retrieve_limit(request: Request) -> Response:
    """``GET``; 404 if there is none."""
    services, organization_id = await admin_of(request)
    project_id = project_of(request)
    cents = await services.control.spend_limits.get(organization_id, project_id)
    return await _response(services, organization_id, project_id, cents)


async def update_limit(request: Request) -> Response:
    """``POST``: create or change it; it holds from the next request on."""
    services, organization_id = await admin_of(request)
    project_id = project_of(request)
    body = await read_body(request)
    cents = body.get("threshold_amount")
    if type(cents) is not int or not 0 <= cents <= MAX_CENTS:
        raise bad_value("threshold_amount", f"a whole number of cents from 0 to {MAX_CENTS}")
    for name, only in (("currency", "USD"), ("interval", "month")):
        if body.get(name) != only:
            raise bad_value(name, f"'{only}'")
    await services.control.spend_limits.set(organization_id, project_id, cents)
    return await _response(services, organization_id, project_id, cents)


async def delete_limit(request: Request) -> Response:
    """``DELETE``; 404 if there is none."""
    services, organization_id = await admin_of(request)
    project_id = project_of(request)
    if not await services.control.spend_limits.delete(organization_id, project_id):
        raise NotFound("There is no spend limit.")
    return JSONResponse({"object": f"{owner_kind(project_id)}.spend_limit.deleted", "deleted": True})


async def _response(
    services: Services, organization_id: str, project_id: str | None, cents: int | None
) -> Response:
    if cents is None:
        raise NotFound("There is no spend limit.")
    subject_id, budgets = project_id or organization_id, services.control.budgets
    if services.config.prices:
        await services.control.spend.ready(budgets.clock())
    return JSONResponse(spend_limit_object(owner_kind(project_id), subject_id, cents, budgets))


_PATHS = ("/v1/organization/spend_limit", "/v1/organization/projects/{project}/spend_limit")
"""Of the organization, and of one of its projects."""
ROUTES: list[Route] = [
    route
    for path in _PATHS
    for route in (
        Route(path, retrieve_limit, methods=["GET"]),
        Route(path, update_limit, methods=["POST"]),
        Route(path, delete_limit, methods=["DELETE"]),
    )
]
