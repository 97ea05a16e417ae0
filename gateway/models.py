"""``/v1/models``: what the caller may use."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.authentication import MODEL_READ, MODEL_REQUEST, authenticate
from gateway.errors import ApiError, insufficient_scope
from gateway.services import services_of
from tenants.types import KeyKind, Principal


async def _reader(request: Request) -> Principal:
    principal = await authenticate(request, KeyKind.PROJECT)
    if not principal.scopes & {"all", MODEL_READ, MODEL_REQUEST}:
        raise insufficient_scope(f"This key lacks the scope {MODEL_READ!r}.")
    return principal


async def list_models(request: Request) -> Response:
    """``GET /v1/models``."""
    principal = await _reader(request)
    cards = [model.card() for model in services_of(request).catalog.visible(principal)]
    return JSONResponse({"object": "list", "data": cards})


async def retrieve_model(request: Request) -> Response:
    """``GET /v1/models/{id}``."""
    principal = await _reader(request)
    model = services_of(request).catalog.resolve(principal, request.path_params["id"])
    return JSONResponse(model.card())


async def delete_model(request: Request) -> Response:
    """``DELETE /v1/models/{id}``: for the caller's own adapters, of which there are none yet."""
    principal = await _reader(request)
    model = services_of(request).catalog.resolve(principal, request.path_params["id"])
    raise ApiError(
        403,
        "permission_error",
        "insufficient_scope",
        f"The model `{model.id}` is a base model of this installation and cannot be deleted through the API.",
        "model",
    )
