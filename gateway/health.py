"""Liveness and readiness, for whoever watches the process. No key."""

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.services import services_of


async def live(_request: Request) -> Response:
    """The process answers."""
    return JSONResponse({"status": "live"})


async def ready(request: Request) -> Response:
    """The gateway can take requests: its database answers and it is not draining.

    Engines are not part of it: they are woken by the request that needs them.
    """
    services = services_of(request)
    if services.draining:
        return JSONResponse({"status": "draining"}, 503)
    try:
        async with services.database.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return JSONResponse({"status": "storage_unavailable"}, 503)
    return JSONResponse({"status": "ready"})
