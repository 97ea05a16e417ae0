"""``/v1/models``: what the caller may use."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.authentication import authenticate
from gateway.errors import ApiError
from gateway.services import services_of
from tenants.scopes import FINE_TUNING, MODEL_READ
from tenants.types import KeyKind


async def list_models(request: Request) -> Response:
    """``GET /v1/models``."""
    principal = await authenticate(request, KeyKind.PROJECT, scope=MODEL_READ)
    cards = [model.card() for model in services_of(request).catalog.visible(principal)]
    return JSONResponse({"object": "list", "data": cards})


async def retrieve_model(request: Request) -> Response:
    """``GET /v1/models/{id}``."""
    principal = await authenticate(request, KeyKind.PROJECT, scope=MODEL_READ)
    model = services_of(request).catalog.resolve(principal, request.path_params["id"])
    return JSONResponse(model.card())


async def delete_model(request: Request) -> Response:
    """``DELETE /v1/models/{id}``: for the caller's own adapters, of which there are none yet."""
    principal = await authenticate(request, KeyKind.PROJECT, scope=FINE_TUNING)
    model = services_of(request).catalog.resolve(principal, request.path_params["id"])
    raise ApiError(
        403,
        "permission_error",
        "insufficient_scope",
        f"The model `{model.id}` is a base model of this installation and cannot be deleted through the API.",
        "model",
    )
