"""The inference endpoints, taken past Starlette's middleware, router and wrappers, which cost as much as
everything else that the gateway does for a request. What they would do for these routes is done here.
"""

from collections.abc import Awaitable, Callable, Iterable

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.context import record_of
from gateway.http.translation import answer_error

Endpoint = Callable[[Request], Awaitable[ASGIApp]]


class FastPath:
    """ASGI: a POST of one of these routes at once, everything else through the application."""

    def __init__(self, app: Starlette, routes: Iterable[Route]) -> None:
        self._app = app
        self._endpoints: dict[str, tuple[Route, Endpoint]] = {
            route.path: (route, route.endpoint) for route in routes
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if handler is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["app"] = self._app
        scope["route"], endpoint = handler
        request, record = Request(scope, receive), record_of(scope)
        try:
            answer = await endpoint(request)
            await answer(scope, receive, send)
        except ClientDisconnect:
            record.client_gone = True
        except Exception as error:
            if record.status:
                raise
            response = await answer_error(request, error)
            await response(scope, receive, send)
            if response.status_code == 500:
                raise
