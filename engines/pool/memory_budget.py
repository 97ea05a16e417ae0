"""The host's memory: who has how much, and who must sleep when it is short.

A wake reserves what its engine is expected to use, before it begins; the measured use replaces it. When there
is not enough, idle engines are put to sleep, the one that was used least recently first, and never one with a
request in flight. Those who wait for memory are served in the order of their coming, but nobody waits behind
a request that all idle engines together could not make room for.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines import host_memory
from engines.errors import InsufficientMemory

_SHARE = 0.8
_logger = logging.getLogger("torpor.engine")


def default_limit() -> int:
    """Bytes: four fifths of the machine's memory, or of its control group's. Raises OSError."""
    return int(host_memory.total_bytes() * _SHARE)


class Reservation:
    """A part of the budget, until it is released. ``changed`` is told of both, and of an owner who stays."""

    def __init__(self, size: int, changed: Callable[["Reservation"], None]) -> None:
        self.size = size
        self.released = False
        self.leaving = False  # its owner is on its way out of memory
        self._changed = changed

    def adjust(self, size: int) -> None:
        """The owner's measured use, in bytes."""
        self.size = size
        self._changed(self)

    def stay(self) -> None:
        """The owner was to be put to sleep, and is needed again."""
        self.leaving = False
        self._changed(self)

    def release(self) -> None:
        """Idempotent."""
        self.released = True
        self._changed(self)


@dataclass(frozen=True, slots=True)
class Victim:
    """An idle engine that could be put to sleep: since when it is idle, what it has, and how to do it.

    The memory is free when the reservation is released; if it cannot leave after all, it says `stay`.
    """

    idle_since: float
    reservation: Reservation
    evict: Callable[[], None]


class MemoryBudget:
    """``victims`` names the engines that could be put to sleep now, ``kept`` tells the bytes of those that
    never are. For one event loop.
    """

    def __init__(
        self, limit: int, victims: Callable[[], list[Victim]], kept: Callable[[], int] = lambda: 0
    ) -> None:
        self.limit = limit
        self._victims = victims
        self._kept = kept
        self._held: set[Reservation] = set()
        self._waiting: dict[Reservation, asyncio.Future[None]] = {}

    @property
    def used(self) -> int:
        """Bytes that are reserved."""
        return sum(reservation.size for reservation in self._held)

    async def reserve(self, size: int) -> Reservation:
        """Wait until there is memory. An engine that needs more than there is gets it when it is alone.

        Raises `InsufficientMemory` when it cannot be alone beside those that never sleep.
        """
        kept = self._kept()
        if kept and kept + size > self.limit:
            raise InsufficientMemory(size, self.limit, kept)
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
        if self._waiting or self.used > self.limit:
            self._serve()

    def _serve(self) -> None:
        if self.used > self.limit and len(self._held) > 1:
            self._make_room(self.used - self.limit, all_suffice=False)
        for reservation, turn in self._waiting.items():
            if turn.done():
                continue
            missing = self.used + reservation.size - self.limit
            if missing <= 0 or not self._held:
                self._held.add(reservation)
                turn.set_result(None)
            elif self._make_room(missing):
                return  # it is its turn: nobody overtakes it
            # Else the engines in use leave it no room: who needs less may go before it.

    def _make_room(self, missing: int, *, all_suffice: bool = True) -> bool:
        """Put engines to sleep, unless so much is being freed already.

        ``all_suffice``: none of them, and False, where all would not suffice.
        """
        rest = [reservation for reservation in self._held if not reservation.leaving]
        idle = [victim for victim in self._victims() if victim.reservation in rest]
        shortfall = missing - sum(reservation.size for reservation in self._held if reservation.leaving)
        enough = shortfall <= sum(victim.reservation.size for victim in idle) or len(idle) == len(rest)
        if all_suffice and not enough:
            return False
        for victim in _fewest(sorted(idle, key=lambda victim: victim.idle_since), shortfall):
            _logger.info("memory is short by %d MiB: an idle engine is put to sleep", shortfall >> 20)
            victim.reservation.leaving = True
            victim.evict()
        return True


def _fewest(victims: Sequence[Victim], shortfall: int) -> list[Victim]:
    """The first that together cover it, without those that the others make superfluous."""
    chosen: list[Victim] = []
    for victim in victims:
        if shortfall <= 0:
            break
        chosen.append(victim)
        shortfall -= victim.reservation.size
    for victim in reversed(chosen):
        if shortfall + victim.reservation.size <= 0:
            chosen.remove(victim)
            shortfall += victim.reservation.size
    return chosen
