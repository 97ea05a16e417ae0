"""Usage reports over HTTP, in the shape of OpenAI's."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.authentication import authenticate
from gateway.services import services_of
from metering.usage import UsageKind, parse_query
from tenants.scopes import USAGE_READ
from tenants.types import KeyKind


@dataclass(frozen=True, slots=True)
class UsageEndpoint:
    """``GET /v1/organization/usage/...`` for the organization of the admin key."""

    kind: UsageKind

    async def __call__(self, request: Request) -> Response:
        principal = await authenticate(request, KeyKind.ADMIN)
        parameters = request.query_params.multi_items()
        query = parse_query(self.kind, principal.organization_id or "", parameters)
        return JSONResponse(await services_of(request).reports.report(query))


async def project_usage(request: Request) -> Response:
    """``GET /v1/torpor/usage``: a project's own completions, read with its own key."""
    principal = await authenticate(request, KeyKind.PROJECT, scope=USAGE_READ)
    parameters = [
        (name, value)
        for name, value in request.query_params.multi_items()
        if name not in ("project_ids", "project_ids[]")
    ]
    parameters.append(("project_ids", principal.project_id or ""))
    query = parse_query(UsageKind.COMPLETIONS, principal.organization_id or "", parameters)
    return JSONResponse(await services_of(request).reports.report(query))


completions = UsageEndpoint(UsageKind.COMPLETIONS)
embeddings = UsageEndpoint(UsageKind.EMBEDDINGS)
