"""An awaitable "this write is durable" that several callers share, and how far a consumer is behind."""

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


class Lag:
    """The lag of a consumer behind a producer whose numbers rise. Times in seconds of one clock.

    One number is followed at a time. When it is reached, whatever is still behind came after the moment at
    which it was noted, and the newest number is noted next: so `seconds` is never less than the age of the
    oldest that is behind, and more than it by one round at most.
    """

    def __init__(self) -> None:
        self._newest = 0
        self._noted: tuple[int, float] | None = None
        self._behind_since: float | None = None

    def leads(self, number: int, now: float) -> None:
        """The leader has come to this number."""
        self._newest = number
        if self._noted is None:
            self._noted, self._behind_since = (number, now), now

    def follows(self, number: int, now: float) -> None:
        """The follower has come to this number."""
        if self._noted is None or number < self._noted[0]:
            return
        if number >= self._newest:
            self._noted = self._behind_since = None
        else:
            self._noted, self._behind_since = (self._newest, now), self._noted[1]

    def seconds(self, now: float) -> float:
        """How long it has been behind by now."""
        return 0.0 if self._behind_since is None else now - self._behind_since
