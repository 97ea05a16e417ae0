"""``/v1/torpor/tokens``: a project's key mints a token that is safe to give to a browser."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.authentication import authenticate_project
from gateway.api.requests import read_body
from gateway.api.resolving import resolve_model
from gateway.http.errors import insufficient_scope, invalid_request
from gateway.services import services_of
from tenants.scopes import MODEL_REQUEST
from tenants.tokens.minting import ISSUER, MAX_LIFETIME_S, MAX_MODELS

_FIELDS = frozenset({"user", "scopes", "models", "expires_in_seconds"})
_DEFAULT_LIFETIME_S = 600
_MAX_SCOPES = 16


async def create_token(request: Request) -> Response:
    """``POST /v1/torpor/tokens``: answers with ``value`` and ``expires_at``, in unix seconds.

    The token opens no more than the key: its scopes are some of the key's, its models some of those that the
    key sees. It ends at the latest with the key.
    """
    principal = await authenticate_project(request)
    if principal.issuer is not None:
        raise insufficient_scope("This is a token: only an API key mints tokens.")
    services = services_of(request)
    body = await read_body(request)
    for name in body:
        if name not in _FIELDS:
            raise invalid_request(f"'{name}' is not known here.", name[:64], "unknown_parameter")
    models, user = _texts(body, "models", MAX_MODELS), _user(body)
    bearer = replace(principal, issuer=ISSUER, user_id=user or principal.user_id)
    for name in models or ():
        resolve_model(services, bearer, name)
    value, expires_at = services.tenants.credentials.mint_token(
        principal,
        user_id=user,
        scopes=_texts(body, "scopes", _MAX_SCOPES) or frozenset({MODEL_REQUEST}),
        models=models,
        expires_in_s=_lifetime_s(body),
    )
    answer = {"object": "torpor.token", "value": value, "expires_at": expires_at}
    return JSONResponse(answer, headers={"cache-control": "no-store"})


def _texts(body: Mapping[str, Any], name: str, most: int) -> frozenset[str] | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise invalid_request(f"'{name}' must be a list of 1 to {most} strings.", name, "invalid_type")
    if not all(isinstance(item, str) for item in value):
        raise invalid_request(f"'{name}' must be a list of 1 to {most} strings.", name, "invalid_type")
    return frozenset(value)


def _user(body: Mapping[str, Any]) -> str | None:
    user = body.get("user")
    if user is not None and not isinstance(user, str):
        raise invalid_request("'user' must be a string.", "user", "invalid_type")
    return user


def _lifetime_s(body: Mapping[str, Any]) -> int:
    value = body.get("expires_in_seconds")
    if value is None:
        return _DEFAULT_LIFETIME_S
    if not isinstance(value, int) or isinstance(value, bool):
        message = f"'expires_in_seconds' must be an integer between 1 and {MAX_LIFETIME_S}."
        raise invalid_request(message, "expires_in_seconds", "invalid_type")
    return value


ROUTES: list[Route] = [
    Route("/v1/torpor/tokens", create_token, methods=["POST"]),
]
