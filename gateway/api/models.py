"""``/v1/models``: what the caller may use."""

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.adapters import delete_owned
from gateway.api.authentication import authenticate_project
from gateway.api.resolving import resolve_model, visible_cards
from gateway.http.errors import JSON, ApiError
from gateway.services import services_of
from tenants.scopes import FINE_TUNING, MODEL_READ


async def list_models(request: Request) -> Response:
    """``GET /v1/models``."""
    principal = await authenticate_project(request, scope=MODEL_READ)
    cards = visible_cards(services_of(request), principal)
    return Response(msgspec.json.encode({"object": "list", "data": cards}), media_type=JSON)


def _id(request: Request) -> str:
    """The model of the path. Raises 404 for the path of all models with a slash at its end."""
    name: str = request.path_params["id"]
    if not name:
        raise HTTPException(404)
    return name


async def retrieve_model(request: Request) -> Response:
    """``GET /v1/models/{id}``. An id may hold slashes, as they are or encoded."""
    principal = await authenticate_project(request, scope=MODEL_READ)
    model = resolve_model(services_of(request), principal, _id(request))
    return JSONResponse(model.card())


async def delete_model(request: Request) -> Response:
    """``DELETE /v1/models/{id}``: for the caller's own adapters."""
    principal = await authenticate_project(request, scope=FINE_TUNING)
    services = services_of(request)
    model = resolve_model(services, principal, _id(request))
    if model.adapter is None:
        raise ApiError(
            403,
            "permission_error",
            "insufficient_scope",
            f"The model `{model.id}` is a base model of this installation and cannot be deleted through the "
            "API.",
            "model",
        )
    await delete_owned(request, services, principal, model.adapter)
    return JSONResponse({"id": model.name, "object": "model", "deleted": True})


ROUTES: list[Route] = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{id:path}", retrieve_model, methods=["GET"]),
    Route("/v1/models/{id:path}", delete_model, methods=["DELETE"]),
]
