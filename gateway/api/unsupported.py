"""The parts of OpenAI's API that this gateway does not have: 501 for each."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.authentication import authenticate, authenticate_project
from gateway.http.errors import not_supported, unsupported
from tenants.scopes import FILES, FINE_TUNING, MODEL_REQUEST
from tenants.types import KeyKind

_METHODS = ["GET", "POST", "DELETE"]
_ORGANIZATION = "/v1/organization"
_PROJECT = f"{_ORGANIZATION}/projects/{{project}}"

UNSUPPORTED: dict[str, str] = {
    f"{_ORGANIZATION}/certificates": "mutual TLS ends at the proxy in front of the gateway",
    f"{_ORGANIZATION}/data_retention": "the gateway keeps no prompts and no answers",
    f"{_ORGANIZATION}/external_keys": "keys of other key stores are not used",
    f"{_ORGANIZATION}/external_storage": "no other storage is used",
    f"{_ORGANIZATION}/groups": "groups are the identity provider's: give its tokens scopes",
    f"{_ORGANIZATION}/invites": "users do not log in here: add them with POST .../projects/{id}/users",
    f"{_ORGANIZATION}/roles": "what a credential opens is said by its scopes",
    f"{_ORGANIZATION}/users/{{user}}/roles": "what a credential opens is said by its scopes",
    **{
        f"{_ORGANIZATION}/usage/{kind}": "no model here does this work"
        for kind in (
            "audio_speeches",
            "audio_transcriptions",
            "code_interpreter_sessions",
            "decisions",
            "file_search_calls",
            "images",
            "moderations",
            "vector_stores",
            "web_search_calls",
        )
    },
    f"{_ORGANIZATION}/workload_identity_providers": "issuers of tokens are configured under [[issuers]]",
    f"{_PROJECT}/certificates": "mutual TLS ends at the proxy in front of the gateway",
    f"{_PROJECT}/data_retention": "the gateway keeps no prompts and no answers",
    f"{_PROJECT}/groups": "groups are the identity provider's: give its tokens scopes",
    f"{_PROJECT}/hosted_tool_permissions": "there are no hosted tools",
    f"{_PROJECT}/service_tier_settings": "each request names its own service tier",
    "/v1/projects/{project}/groups": "groups are the identity provider's: give its tokens scopes",
    "/v1/projects/{project}/roles": "what a credential opens is said by its scopes",
    "/v1/projects/{project}/users/{user}/roles": "what a credential opens is said by its scopes",
}
"""Paths, with all that is below them, and why there is nothing."""


NOT_YET: dict[str, str] = {
    "responses": MODEL_REQUEST,
    "messages": MODEL_REQUEST,
    "files": FILES,
    "batches": FILES,
    "fine_tuning/jobs": FINE_TUNING,
}
"""Paths below ``/v1`` that inference clients use, and the scope that a key needs to be told so."""


def _unsupported(path: str, reason: str) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of a path of the administration, and of all below it."""

    async def endpoint(request: Request) -> Response:
        await authenticate(request, KeyKind.ADMIN)
        what = path.removeprefix("/v1")
        raise unsupported(f"{request.method} {what} is not supported by this gateway: {reason}.")

    return endpoint


def _not_yet(scope: str) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of a path that inference clients use, and of all below it."""

    async def endpoint(request: Request) -> Response:
        reads = request.method == "GET" and scope != MODEL_REQUEST
        await authenticate_project(request, scope=f"{scope}.read" if reads else scope)
        raise not_supported(f"{request.method} {request.url.path}")

    return endpoint


ROUTES: list[Route] = [
    Route(f"{path}{rest}", endpoint, methods=_METHODS)
    for path, endpoint in (
        *((path, _unsupported(path, reason)) for path, reason in UNSUPPORTED.items()),
        *((f"/v1/{path}", _not_yet(scope)) for path, scope in NOT_YET.items()),
    )
    for rest in ("", "/{rest:path}")
]
"""Explicit routes: a path that OpenAI's API does not have is still a 404."""
