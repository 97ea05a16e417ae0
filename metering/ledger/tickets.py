"""What is waited for: that a write is durable. Made and used on the event loop only."""

import asyncio

from metering.errors import MeteringError
from tenants.errors import StorageUnavailable


class Durability:
    """Resolved once, with or without an error, and awaited any number of times.

    Unlike with a future, an error that is not awaited is not logged, and a waiter that is cancelled leaves
    the others waiting.
    """

    __slots__ = ("_error", "_waiting", "resolved")

    def __init__(self) -> None:
        self.resolved = False
        self._error: MeteringError | StorageUnavailable | None = None
        self._waiting: list[asyncio.Future[None]] | None = None

    def resolve(self, error: MeteringError | StorageUnavailable | None) -> None:
        """Wakes those who wait."""
        self.resolved, self._error = True, error
        waiting, self._waiting = self._waiting, None
        for future in waiting or ():
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        """Return when the write is durable; raises its error if it is not."""
        if not self.resolved:
            future = asyncio.get_running_loop().create_future()
            if self._waiting is None:
                self._waiting = []
            self._waiting.append(future)
            await future
        if self._error is not None:
            raise type(self._error)(*self._error.args) from self._error
