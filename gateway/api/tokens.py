"""``/v1/torpor/tokens``: a project's key mints a token that is safe to give to a browser."""

from dataclasses import replace
from typing import Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.authentication import authenticate_project
from gateway.api.body import MAX_ID, Body, read
from gateway.api.resolving import resolve_model
from gateway.http.errors import insufficient_scope
from gateway.services import services_of
from tenants.scopes import MODEL_REQUEST, SCOPES
from tenants.tokens.minting import ISSUER, MAX_LIFETIME_S, MAX_MODELS

_DEFAULT_LIFETIME_S = 600
_MAX_SCOPES = 16
_LENGTH_IS_TYPE = {"codes": {"invalid_value": "invalid_type"}}
_Scope = Annotated[str, Meta(extra_json_schema={"enum": sorted(SCOPES)})]


class NewToken(Body):
    """A short-lived token: for whom, what it opens, and for how many seconds."""

    user: Annotated[str, Meta(min_length=1, max_length=MAX_ID)] | None = None
    scopes: (
        Annotated[list[_Scope], Meta(min_length=1, max_length=_MAX_SCOPES, extra=_LENGTH_IS_TYPE)] | None
    ) = None
    models: Annotated[list[str], Meta(min_length=1, max_length=MAX_MODELS, extra=_LENGTH_IS_TYPE)] | None = (
        None
    )
    expires_in_seconds: Annotated[int, Meta(ge=1, le=MAX_LIFETIME_S)] | None = None


async def create_token(request: Request) -> Response:
    """``POST /v1/torpor/tokens``: answers with ``value`` and ``expires_at``, in unix seconds.

    The token opens no more than the key: its scopes are some of the key's, its models some of those that the
    key sees. It ends at the latest with the key.
    """
    principal = await authenticate_project(request)
    if principal.issuer is not None:
        raise insufficient_scope("This is a token: only an API key mints tokens.")
    services = services_of(request)
    body = await read(request, NewToken)
    bearer = replace(principal, issuer=ISSUER, user_id=body.user or principal.user_id)
    for name in body.models or ():
        resolve_model(services, bearer, name)
    value, expires_at = services.tenants.credentials.mint_token(
        principal,
        user_id=body.user,
        scopes=frozenset(body.scopes or (MODEL_REQUEST,)),
        models=None if body.models is None else frozenset(body.models),
        expires_in_s=_DEFAULT_LIFETIME_S if body.expires_in_seconds is None else body.expires_in_seconds,
    )
    answer = {"object": "torpor.token", "value": value, "expires_at": expires_at}
    return JSONResponse(answer, headers={"cache-control": "no-store"})


ROUTES: list[Route] = [
    Route("/v1/torpor/tokens", create_token, methods=["POST"]),
]
