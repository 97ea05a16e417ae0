"""Requests that no route takes: a 404 that says what may be meant, and a 405 that names the methods."""

from collections.abc import Sequence
from difflib import get_close_matches
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from gateway.http.context import record_of
from gateway.http.errors import ApiError
from gateway.http.translation import answer_error

_VERSION = "/v1"
_SHOWN = 128
_CLOSE = 0.85
"""How alike a path must be to one that exists (`difflib.SequenceMatcher.ratio`) to be taken for a slip."""
_MAX_COMPARED = 48


class UnknownEndpoints:
    """Answers Starlette's 404 and 405 for the routes of an application."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        # The administration has hundreds of paths; a slip in one of them is rare, and comparing takes time.
        self._compared = [
            route.path
            for route in routes
            if "{" not in route.path and route.path.count("/") <= 3 and "organization" not in route.path
        ]
        self._firsts = {route.path.split("/")[2] for route in routes if route.path.startswith(f"{_VERSION}/")}

    async def answer(self, request: Request, error: Exception) -> Response:
        """Starlette's exception handler for ``HTTPException``."""
        status = error.status_code if isinstance(error, HTTPException) else 0
        if status == 404:
            answer = self._not_found(request.method, request.scope["path"])
        elif status == 405:
            answer = self._not_allowed(request.scope)
        else:
            return await answer_error(request, error)
        record_of(request.scope).code = answer.code
        return answer.response()

    def _not_found(self, method: str, path: str) -> ApiError:
        message = f"Unknown endpoint: {_printable(method, path)}."
        meant = self._meant(path)
        if meant is not None:
            message += f" Did you mean {_printable('', meant)}?"
            if meant.startswith(f"{_VERSION}/") and f"{_VERSION}/" not in path:
                message += f" The client's base URL must end in {_VERSION}."
            elif path.startswith(f"{_VERSION}{_VERSION}/"):
                message += f" The client's base URL and its paths both have {_VERSION}."
        return ApiError(404, "invalid_request_error", "not_found", message)

    def _not_allowed(self, scope: Scope) -> ApiError:
        matching = [route for route in self._routes if route.matches(scope)[0] is not Match.NONE]
        allowed = ", ".join(sorted({method for route in matching for method in route.methods or ()}))
        message = f"{_printable(scope['method'], scope['path'])} is not allowed. Allowed: {allowed}."
        headers = {"allow": allowed}
        return ApiError(405, "invalid_request_error", "method_not_allowed", message, headers=headers)

    def _meant(self, path: str) -> str | None:
        """A path that exists and that a client with a wrong base URL, or with a slip, turns into this one."""
        if len(path) > 2 * _SHOWN:
            return None
        plain = "/" + "/".join(part for part in path.split("/") if part)
        while plain.startswith(f"{_VERSION}{_VERSION}/"):
            plain = plain.removeprefix(_VERSION)
        prefixed = plain.find(f"{_VERSION}/", 1)
        if prefixed > 0:
            plain = plain[prefixed:]
        elif plain.split("/")[1] in self._firsts:
            plain = _VERSION + plain
        if any(route.path_regex.match(plain) for route in self._routes):
            return plain if plain != path else None
        if len(plain) > _MAX_COMPARED:
            return None
        return next(iter(get_close_matches(plain, self._compared, 1, _CLOSE)), None)


def _printable(method: str, path: str) -> str:
    """Method and path in ASCII, of bounded length, with nothing in them that a page or terminal acts on."""
    quoted = quote(path if len(path) <= _SHOWN else path[:_SHOWN] + "...", safe="/:@~+,=*", errors="replace")
    return f"{method} {quoted}".strip()
