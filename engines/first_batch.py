"""The canary of a restored engine and the first request, in one batch. Runs in the API server process.

Each step of the engine core reads all weights, so one for the canary and then one for the request would take
twice as long as one for both. They must be in the core's queue before it begins a step: the canary is
prepared at once, waits for the first request just before it would be sent, and the two are sent in a row.
"""

import asyncio
from typing import Any

CANARY = "torpor-canary-"
"""How the ids of a canary's requests begin."""
_PATIENCE_S = 0.1


class FirstBatch:
    """Stands in the way to the engine core, from its making until `close`.

    ``core``: vLLM's client of the engine core, whose ``add_request_async`` sends a request.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._send = core.add_request_async
        self._asked = asyncio.Event()
        self._sent = asyncio.Event()
        core.add_request_async = self._add

    def open(self) -> None:
        """Nothing more is to be waited for."""
        self._asked.set()

    def close(self) -> None:
        """Out of the way: the canary has answered, or will not."""
        del self._core.add_request_async
        self._asked.set()
        self._sent.set()

    async def _add(self, request: Any) -> None:
        if not request.request_id.startswith(CANARY):
            self._asked.set()
            await self._sent.wait()
            await self._send(request)
            return
        try:
            await asyncio.wait_for(self._asked.wait(), _PATIENCE_S)
        except TimeoutError:
            self._asked.set()
        await self._send(request)
        self._sent.set()
