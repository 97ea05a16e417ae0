"""``/v1/torpor/projects/{id}/weight``: a project's share in the models' queues."""

from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.authentication import authenticate
from gateway.api.body import Body, read
from gateway.api.requests import path_id
from gateway.services import services_of
from tenants.queueing.project_weights import LEAST_WEIGHT, MOST_WEIGHT, STANDARD_WEIGHT
from tenants.types import KeyKind

_KINDS = (KeyKind.ADMIN, KeyKind.ROOT)
_RANGE = {"minimum": LEAST_WEIGHT, "maximum": MOST_WEIGHT}


class WeightChange(Body, forbid_unknown_fields=False):
    """A project's share in the models' queues; above 1 only with the root key."""

    weight: Annotated[
        float,
        Meta(extra_json_schema=_RANGE, extra={"codes": {"missing_required_parameter": "invalid_type"}}),
    ]


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
    weight = (await read(request, WeightChange)).weight
    most = MOST_WEIGHT if principal.kind is KeyKind.ROOT else STANDARD_WEIGHT
    project_id = path_id(request, "project")
    held = await services.weights.set(project_id, weight, principal.organization_id, most=most)
    return JSONResponse(weight_object(project_id, held))


_WEIGHT = "/v1/torpor/projects/{project}/weight"
ROUTES: list[Route] = [
    Route(_WEIGHT, retrieve_weight, methods=["GET"]),
    Route(_WEIGHT, update_weight, methods=["POST"]),
]
