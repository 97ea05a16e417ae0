"""An application behind a real uvicorn in the test's own process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from gateway.http.protocol import guarded_protocol


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """The test's own process keeps its handlers."""


@asynccontextmanager
async def serving(
    app: ASGIApp, *, max_header_bytes: int = 32768, header_timeout_s: float = 10.0
) -> AsyncIterator[int]:
    """The port on which the application is served, with the gateway's own protocol."""
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits for an ACK.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        protocol = guarded_protocol(max_header_bytes, header_timeout_s)
        server = _Server(uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None))
        task = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task
