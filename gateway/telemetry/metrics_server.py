"""``/metrics`` on a listener of its own, beside the gateway's in the same event loop."""

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class MetricsServer(uvicorn.Server):
    """Serves until `end`; signals are left to the gateway."""

    def __init__(self, registry: CollectorRegistry, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                metrics_app(registry), ws="none", lifespan="off", log_config=None, access_log=False,
                server_header=False, timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Serve from now on."""
        self._serving = asyncio.create_task(self.serve([self._listener]), name="metrics")

    async def end(self) -> None:
        """End what runs, and give the port back."""
        self.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving})
        self._listener.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def metrics_app(registry: CollectorRegistry) -> Starlette:
    """The one call there is: ``GET /metrics``, in the format that is asked for."""

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return Starlette(routes=[Route("/metrics", metrics, methods=["GET"])])
