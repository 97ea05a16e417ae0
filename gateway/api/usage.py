"""Usage and cost reports over HTTP, in the shape of OpenAI's."""

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.api.authentication import authenticate_member, authenticate_project
from gateway.services import services_of
from metering.reports.costs import parse_costs
from metering.reports.usage import UsageKind, parse_query
from tenants.scopes import USAGE_READ
from tenants.types import KeyKind

_EXACT = msgspec.json.Encoder(decimal_format="number")


@dataclass(frozen=True, slots=True)
class UsageEndpoint:
    """``GET /v1/organization/usage/...`` for the organization of the admin key."""

    kind: UsageKind

    async def __call__(self, request: Request) -> Response:
        principal = await authenticate_member(request, KeyKind.ADMIN)
        parameters = request.query_params.multi_items()
        query = parse_query(self.kind, principal.organization_id, parameters)
        return JSONResponse(await services_of(request).reports.report(query))


@dataclass(frozen=True, slots=True)
class ProjectUsageEndpoint:
    """``GET /v1/torpor/usage/...``: a project's own, read with its own key."""

    kind: UsageKind

    async def __call__(self, request: Request) -> Response:
        organization_id, parameters = await _own(request)
        query = parse_query(self.kind, organization_id, parameters)
        return JSONResponse(await services_of(request).reports.report(query))


async def costs(request: Request) -> Response:
    """``GET /v1/organization/costs``. Amounts are exact decimal numbers."""
    principal = await authenticate_member(request, KeyKind.ADMIN)
    parameters = request.query_params.multi_items()
    return await _costs(request, principal.organization_id, parameters)


async def project_costs(request: Request) -> Response:
    """``GET /v1/torpor/costs``: a project's own."""
    return await _costs(request, *await _own(request))


async def _costs(request: Request, organization_id: str, parameters: list[tuple[str, str]]) -> Response:
    answer = await services_of(request).costs.report(parse_costs(organization_id, parameters))
    return Response(_EXACT.encode(answer), media_type="application/json")


async def _own(request: Request) -> tuple[str, list[tuple[str, str]]]:
    """The organization of the project's key, and the parameters, held to the project."""
    principal = await authenticate_project(request, scope=USAGE_READ)
    parameters = [
        (name, value)
        for name, value in request.query_params.multi_items()
        if name not in ("project_ids", "project_ids[]")
    ]
    return principal.organization_id, [*parameters, ("project_ids", principal.project_id)]


completions = UsageEndpoint(UsageKind.COMPLETIONS)
embeddings = UsageEndpoint(UsageKind.EMBEDDINGS)
project_completions = ProjectUsageEndpoint(UsageKind.COMPLETIONS)
project_embeddings = ProjectUsageEndpoint(UsageKind.EMBEDDINGS)
