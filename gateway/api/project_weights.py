"""``/v1/torpor/projects/{id}/weight``: a project's share in the models' queues."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.authentication import authenticate
from gateway.api.requests import path_id, read_body
from gateway.http.errors import invalid_request
from gateway.services import services_of
from tenants.queueing.project_weights import MOST_WEIGHT, STANDARD_WEIGHT
from tenants.types import KeyKind

_KINDS = (KeyKind.ADMIN, KeyKind.ROOT)


def weight_object(project_id: str, weight: float) -> dict[str, Any]:
    """Torpor's ``project.weight`` object."""
    return {"object": "torpor.project.weight", "project_id": project_id, "weight": weight}


async def retrieve_weight(request: Request) -> Response:
    """``GET``: with an admin key for the organization's own projects, with the root key for all."""
    principal = await authenticate(request, *_KINDS)
    project_id = path_id(request, "project")
    weight = await services_of(request).weights.get(project_id, principal.organization_id)
    return JSONResponse(weight_object(project_id, weight))


async def update_weight(request: Request) -> Response:
    """``POST`` with ``{"weight": 0.5}``: holds for the project's next request.

    An admin key may set up to 1, the weight that every project begins with. Weights divide one shared pool,
    so only the root key may raise a project above that.
    """
    principal = await authenticate(request, *_KINDS)
    services = services_of(request)
    body = await read_body(request)
    weight = body.get("weight")
    if not isinstance(weight, int | float) or isinstance(weight, bool):
        raise invalid_request("'weight' must be a number.", "weight", "invalid_type")
    most = MOST_WEIGHT if principal.kind is KeyKind.ROOT else STANDARD_WEIGHT
    project_id = path_id(request, "project")
    try:
        value = float(weight)
    except OverflowError:
        value = float("inf")
    held = await services.weights.set(project_id, value, principal.organization_id, most=most)
    return JSONResponse(weight_object(project_id, held))


_WEIGHT = "/v1/torpor/projects/{project}/weight"
ROUTES: list[Route] = [
    Route(_WEIGHT, retrieve_weight, methods=["GET"]),
    Route(_WEIGHT, update_weight, methods=["POST"]),
]
