"""Usage and cost reports over HTTP, in the shape of OpenAI's."""

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.authentication import authenticate_member, authenticate_project
from gateway.services import services_of
from metering.reports.costs import parse_costs
from metering.reports.usage import UsageKind, parse_query
from tenants.scopes import USAGE_READ
from tenants.types import KeyKind

_EXACT = msgspec.json.Encoder(decimal_format="number")


async def completions(request: Request) -> Response:
    """``GET /v1/organization/usage/completions``, of the organization of the admin key."""
    return await _of_organization(request, UsageKind.COMPLETIONS)


async def embeddings(request: Request) -> Response:
    """``GET /v1/organization/usage/embeddings``, of the organization of the admin key."""
    return await _of_organization(request, UsageKind.EMBEDDINGS)


async def project_completions(request: Request) -> Response:
    """``GET /v1/torpor/usage/completions``: a project's own, read with its own key."""
    return await _of_project(request, UsageKind.COMPLETIONS)


async def project_embeddings(request: Request) -> Response:
    """``GET /v1/torpor/usage/embeddings``: a project's own, read with its own key."""
    return await _of_project(request, UsageKind.EMBEDDINGS)


async def _of_organization(request: Request, kind: UsageKind) -> Response:
    principal = await authenticate_member(request, KeyKind.ADMIN)
    query = parse_query(kind, principal.organization_id, request.query_params.multi_items())
    return JSONResponse(await services_of(request).reports.report(query))


async def _of_project(request: Request, kind: UsageKind) -> Response:
    query = parse_query(kind, *await _own(request))
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


ROUTES: list[Route] = [
    Route("/v1/organization/usage/completions", completions, methods=["GET"]),
    Route("/v1/organization/usage/embeddings", embeddings, methods=["GET"]),
    Route("/v1/organization/costs", costs, methods=["GET"]),
    Route("/v1/torpor/usage", project_completions, methods=["GET"]),
    Route("/v1/torpor/usage/completions", project_completions, methods=["GET"]),
    Route("/v1/torpor/usage/embeddings", project_embeddings, methods=["GET"]),
    Route("/v1/torpor/costs", project_costs, methods=["GET"]),
]
