"""The gateway's command with a clock on the event loop: ``python -m loadtest.timed_gateway serve ...``.

For `loadtest.loop_turns`. ``POST /loop-turns`` forgets what was measured, ``GET /loop-turns`` returns the CPU
time of the loop's longest turn since then: ``{"longest_ms": ...}``. A callback that asks for the next turn in
each turn measures them, so the loop never sleeps.
"""

import asyncio
import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway import server
from gateway.cli import main


class TurnClock:
    """The CPU time of the loop's thread in its longest turn."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._began_s: float | None = None

    async def forget(self, _: Request) -> JSONResponse:
        """Begin again; the turn that answers is not counted."""
        if self._began_s is None:
            self._turn()
        asyncio.get_running_loop().call_later(0.05, self._forget)
        await asyncio.sleep(0.1)
        return JSONResponse({})

    def _forget(self) -> None:
        self._longest_s = 0.0

    async def tell(self, _: Request) -> JSONResponse:
        return JSONResponse({"longest_ms": self._longest_s * 1000})

    def _turn(self) -> None:
        now_s = time.thread_time()
        if self._began_s is not None:
            self._longest_s = max(self._longest_s, now_s - self._began_s)
        self._began_s = now_s
        asyncio.get_running_loop().call_soon(self._turn)


def _with_clock(create_app: Any) -> Any:
    def created(*arguments: Any) -> Starlette:
        app: Starlette = create_app(*arguments)
        clock = TurnClock()
        app.router.routes[:0] = [
            Route("/loop-turns", clock.forget, methods=["POST"]),
            Route("/loop-turns", clock.tell, methods=["GET"]),
        ]
        return app

    return created


if __name__ == "__main__":
    create_app = vars(server)["create_app"]
    setattr(server, create_app.__name__, _with_clock(create_app))
    main()
