"""Monthly spend limits over HTTP, in OpenAI's shape."""

from typing import Annotated, Any, Literal

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.body import ONLY_INVALID_VALUE, Body, read
from gateway.api.requests import admin_of, owner_kind, project_of
from gateway.services import Services
from tenants.errors import NotFound
from tenants.limits.budgets import Budgets
from tenants.limits.spend_limits import MAX_CENTS

_Currency = Annotated[Literal["USD"], Meta(extra={**ONLY_INVALID_VALUE})]
_Interval = Annotated[Literal["month"], Meta(extra={**ONLY_INVALID_VALUE})]


class SpendLimitChange(Body, forbid_unknown_fields=False):
    """A monthly spend limit in cents."""

    threshold_amount: Annotated[int, Meta(ge=0, le=MAX_CENTS, extra={**ONLY_INVALID_VALUE})]
    currency: _Currency
    interval: _Interval


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
    cents = (await read(request, SpendLimitChange)).threshold_amount
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
