"""A way out that is made when it is first needed."""

import asyncio
from collections.abc import Callable

import httpx


class LazyTransport(httpx.AsyncBaseTransport):
    """Has ``make`` called, in a thread, by the first request: to read all trusted certificates takes long."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._make = make
        self._transport: httpx.AsyncBaseTransport | None = None
        self._making = asyncio.Lock()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As what it makes does."""
        async with self._making:
            if self._transport is None:
                self._transport = await asyncio.to_thread(self._make)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close what was made."""
        if self._transport is not None:
            await self._transport.aclose()
