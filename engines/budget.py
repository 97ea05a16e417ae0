"""The host's memory: who has how much, and who must sleep when it is short.

A wake reserves what its engine is expected to use, before it begins; the measured use replaces it. When there
is not enough, idle engines are put to sleep, the one that was used least recently first, and never one with a
request in flight. Those who wait for memory are served in the order of their coming.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_SHARE = 0.8
_logger = logging.getLogger("torpor.engine")


def default_limit() -> int:
    """Bytes: four fifths of the machine's memory."""
    for line in _MEMORY.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(int(line.split()[1]) * 1024 * _SHARE)
    raise OSError("the system does not tell how much memory it has")


@dataclass(frozen=True, slots=True)
class Victim:
    """An idle engine that could be put to sleep: since when it is idle, and how to do it."""

    idle_since: float
    evict: Callable[[], None]


class Reservation:
    """A part of the budget, until it is released. ``changed`` is told of both."""

    def __init__(self, size: int, changed: Callable[["Reservation"], None]) -> None:
        self.size = size
        self.released = False
        self._changed = changed

    def adjust(self, size: int) -> None:
        """The owner's measured use, in bytes."""
        self.size = size
        self._changed(self)

    def release(self) -> None:
        """Idempotent."""
        self.released = True
        self._changed(self)


class MemoryBudget:
    """``victims`` names the engines that could be put to sleep now. For one event loop."""

    def __init__(self, limit: int, victims: Callable[[], list[Victim]]) -> None:
        self.limit = limit
        self._victims = victims
        self._held: set[Reservation] = set()
        self._waiting: dict[Reservation, asyncio.Future[None]] = {}

    @property
    def used(self) -> int:
        """Bytes that are reserved."""
        return sum(reservation.size for reservation in self._held)

    async def reserve(self, size: int) -> Reservation:
        """Wait until there is memory. An engine that needs more than there is gets it when it is alone."""
        reservation = Reservation(size, self._on_changed)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[reservation] = turn
        try:
            self._serve()
            await turn
        except BaseException:
            reservation.release()
            raise
        finally:
            self._waiting.pop(reservation, None)
        return reservation

    def _on_changed(self, reservation: Reservation) -> None:
        if reservation.released:
            self._held.discard(reservation)
        self._serve()

    def recheck(self) -> None:
        """An engine has become idle: it may be put to sleep for those who wait."""
        if self._waiting:
            self._serve()

    def _serve(self) -> None:
        for reservation, turn in self._waiting.items():
            if turn.done():
                continue
            if self._held and self.used + reservation.size > self.limit:
                self._make_room(self.used + reservation.size - self.limit)
                return
            self._held.add(reservation)
            turn.set_result(None)

    def _make_room(self, missing: int) -> None:
        """Put one engine to sleep; the next one when that was not enough."""
        victims = sorted(self._victims(), key=lambda victim: victim.idle_since)
        if victims:
            _logger.info("memory is short by %d MiB: an idle engine is put to sleep", missing >> 20)
            victims[0].evict()
