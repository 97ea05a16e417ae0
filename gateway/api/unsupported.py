"""The rest of the official client's administration, which this gateway has nothing behind: 501 for each."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.authentication import authenticate
from gateway.http.errors import unsupported
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


class Unsupported:
    """One path and all below it."""

    def __init__(self, path: str, why: str) -> None:
        self._path = path
        self._why = why

    async def __call__(self, request: Request) -> Response:
        await authenticate(request, KeyKind.ADMIN)
        what = self._path.removeprefix("/v1")
        message = f"{request.method} {what} is not supported by this gateway: {self._why}."
        raise unsupported(message)


def unsupported_routes() -> list[Route]:
    """Explicit routes, so that a path that is nowhere in OpenAI's API still is a 404."""
    return [
        Route(f"{path}{rest}", Unsupported(path, why).__call__, methods=_METHODS)
        for path, why in UNSUPPORTED.items()
        for rest in ("", "/{rest:path}")
    ]
