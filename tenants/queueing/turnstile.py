"""Lets so many requests of a model through at once; the others wait in a queue.

A slot that becomes free goes to exactly one waiter, by a future of its own: no waiter polls, and none is
woken in vain. A request that is cancelled in the moment in which it gets its turn hands it on. For one event
loop.
"""

import asyncio
import math
import time
from collections.abc import Callable

from tenants.errors import QueueFull, QueueTimeout
from tenants.queueing.fair_queue import Discipline, Ticket

_LEARNING = 0.125
_FIRST_SERVICE_S = 1.0
_MOST_RETRY_S = 60.0


class Turn:
    """One slot or several (``slots``), from the grant until `end`."""

    __slots__ = ("_began", "_owner", "ended", "slots", "ticket")

    def __init__(self, owner: "Turnstile", ticket: Ticket, began: float, slots: int = 1) -> None:
        self.ticket = ticket
        self.slots = slots
        self.ended = False
        self._owner = owner
        self._began = began

    def end(self, cost: float) -> None:
        """The slot is free, and the request has really cost so much. The first call counts."""
        if not self.ended:
            self.ended = True
            self._owner.free(self.ticket, cost, self._began, self.slots)


class Turnstile:
    """``slots`` sequences at once, of which ``reserved`` are for projects of which nothing is in service.

    A request of several sequences gets as many slots as are free, one at least, and keeps them to its end.

    At most ``max_queued`` requests of each project wait. ``queue`` decides whose turn it is, ``on_change`` is
    called with the number of those who wait when it has changed, ``clock`` gives seconds.
    """

    def __init__(
        self,
        queue: Discipline,
        *,
        slots: int,
        reserved: int = 0,
        max_queued: int = 256,
        on_change: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._slots = slots
        self._reserved = reserved
        self._max_queued = max_queued
        self._on_change = on_change
        self._clock = clock
        self._running = 0
        self._taken = 0
        self._reported = 0
        self._waiters: dict[Ticket, asyncio.Future[Turn]] = {}
        self._service_s = _FIRST_SERVICE_S  # how long a slot is held, on average

    @property
    def running(self) -> int:
        """How many requests have their turn."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def resize(self, slots: int, reserved: int = 0) -> None:
        """Change the number of slots. A request that has one keeps it."""
        self._slots, self._reserved = slots, reserved
        self._dispatch()

    async def enter(self, ticket: Ticket, timeout_s: float | None = None) -> Turn:
        """Wait for a slot, which the caller frees with `Turn.end`.

        Raises `QueueFull` at once, and `QueueTimeout` after ``timeout_s``.
        """
        if self._queue.waiting(ticket.project_id) >= self._max_queued:
            raise QueueFull(self._max_queued, self._retry_after_s())
        granted: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiters[ticket] = granted
        self._queue.put(ticket)
        self._dispatch()
        if granted.done():
            return granted.result()
        try:
            async with asyncio.timeout(timeout_s):
                return await granted
        except TimeoutError:
            self._give_up(ticket, granted)
            raise QueueTimeout(timeout_s or 0.0, self._retry_after_s()) from None
        except asyncio.CancelledError:
            self._give_up(ticket, granted)
            raise

    def _give_up(self, ticket: Ticket, granted: asyncio.Future[Turn]) -> None:
        if ticket in self._waiters:
            del self._waiters[ticket]
            self._queue.discard(ticket)
            self._dispatch()
        elif not granted.cancelled():
            granted.result().end(0.0)

    def free(self, ticket: Ticket, cost: float, began: float, slots: int) -> None:
        """End a turn: `Turn.end` calls it."""
        self._running -= 1
        self._taken -= slots
        self._service_s += _LEARNING * (self._clock() - began - self._service_s)
        self._queue.finish(ticket, cost)
        self._dispatch()

    def _dispatch(self) -> None:
        """Give every free slot to the next request."""
        while self._taken < self._slots:
            unreserved = self._slots - self._reserved - self._taken
            ticket = self._queue.take(reserved=unreserved <= 0)
            if ticket is None:
                break
            granted = self._waiters.pop(ticket)
            if granted.done():  # cancelled, but its task has not run since
                self._queue.finish(ticket, 0.0)
                continue
            slots = max(1, min(ticket.slots, unreserved))
            self._running += 1
            self._taken += slots
            granted.set_result(Turn(self, ticket, self._clock(), slots))
        if self._on_change is not None and self._reported != len(self._queue):
            self._reported = len(self._queue)
            self._on_change(self._reported)

    def _retry_after_s(self) -> float:
        """When those who wait now will probably have had their turn."""
        expected_s = self._service_s * (len(self._queue) + 1) / max(1, self._slots)
        return min(_MOST_RETRY_S, max(1.0, math.ceil(expected_s)))
