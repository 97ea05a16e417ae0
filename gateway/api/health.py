"""Liveness and readiness, for monitoring. They need no key."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.services import services_of
from tenants.errors import StorageUnavailable


async def live(_request: Request) -> Response:
    """The process answers."""
    return JSONResponse({"status": "live"})


async def ready(request: Request) -> Response:
    """The gateway can take requests: its database answers, its ledger can be written and it is not draining.

    Engines are not part of it: they are woken by the request that needs them.
    """
    services = services_of(request)
    if services.draining:
        return JSONResponse({"status": "draining"}, 503)
    try:
        await services.tenants.storage.ping()
    except StorageUnavailable:
        return JSONResponse({"status": "storage_unavailable"}, 503)
    if not services.ledger.accepts:
        return JSONResponse({"status": "storage_unavailable"}, 503)
    return JSONResponse({"status": "ready"})


ROUTES: list[Route] = [
    Route("/health", ready, methods=["GET"]),
    Route("/health/live", live, methods=["GET"]),
    Route("/health/ready", ready, methods=["GET"]),
]
