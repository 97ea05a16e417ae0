"""The host's memory: how much each engine holds, and which engine must sleep if it is short.

A wake reserves what its engine is expected to use before it begins; the measured use replaces it. If memory
is short, idle engines are put to sleep, the least recently used first, and never one with a request in
flight. Wakes are admitted in the order of their arrival, but none waits behind a wake for which all idle
engines together could not make room.

`plan_memory` decides, and changes nothing; `MemoryBudget` carries its decisions out.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from engines import host_memory
from engines.errors import InsufficientMemory

_SHARE = 0.8
_logger = logging.getLogger("torpor.engine")


def default_limit() -> int:
    """Bytes: four fifths of the machine's memory, or of its control group's. Raises OSError."""
    return int(host_memory.total_bytes() * _SHARE)


class MemoryReservation:
    """A part of the budget, in bytes, until it is released. ``on_change`` is called for each change."""

    def __init__(self, size: int, on_change: Callable[["MemoryReservation"], None]) -> None:
        self.size = size
        self.released = False
        self.leaving = False  # its engine is on its way out of memory
        self._on_change = on_change

    def adjust(self, size: int) -> None:
        """Replace the size by the measured use of the engine, in bytes."""
        self.size = size
        self._on_change(self)

    def stay(self) -> None:
        """Keep it: the engine was to be put to sleep, and is needed again."""
        self.leaving = False
        self._on_change(self)

    def release(self) -> None:
        """Give the memory back. May be called again."""
        self.released = True
        self._on_change(self)


@dataclass(frozen=True, slots=True)
class Victim:
    """An idle engine that could be put to sleep: since when it is idle, its reservation, and how to do it.

    The memory is free when the reservation is released. If the engine cannot leave after all, it calls
    `stay`.
    """

    idle_since: float
    reservation: MemoryReservation
    evict: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Admit:
    """The wake gets its memory."""

    reservation: MemoryReservation


@dataclass(frozen=True, slots=True)
class Evict:
    """The idle engine is to leave memory."""

    victim: Victim


def plan_memory(
    limit: int,
    held: Collection[MemoryReservation],
    waiting: Iterable[MemoryReservation],
    victims: Sequence[Victim],
) -> list[Admit | Evict]:
    """Which wakes get their memory now, and which idle engines leave for the next one.

    ``waiting``: in the order of arrival. A wake that needs more than ``limit`` is admitted if nothing is
    held.
    """
    memory = _Memory(limit, list(held), sorted(victims, key=lambda victim: victim.idle_since))
    plan: list[Admit | Evict] = []
    if memory.used > limit and len(memory.held) > 1:
        plan += memory.evictions(memory.used - limit, even_if_too_little=True) or []
    for reservation in waiting:
        missing = memory.used + reservation.size - limit
        if missing <= 0 or not memory.held:
            memory.held.append(reservation)
            plan.append(Admit(reservation))
            continue
        evictions = memory.evictions(missing)
        if evictions is not None:
            return [*plan, *evictions]  # it is next, and no later wake overtakes it
        # Engines in use leave it no room, so a wake that needs less may go first.
    return plan


class _Memory:
    """The budget with the decisions of the plan so far."""

    def __init__(self, limit: int, held: list[MemoryReservation], victims: Sequence[Victim]) -> None:
        self.held = held
        self._limit = limit
        self._victims = victims
        self._leaving = {reservation for reservation in held if reservation.leaving}

    @property
    def used(self) -> int:
        return sum(reservation.size for reservation in self.held)

    def evictions(self, missing: int, *, even_if_too_little: bool = False) -> list[Evict] | None:
        """The engines to put to sleep, unless as much is being freed already.

        None, if all idle engines together would not suffice.
        """
        staying = [reservation for reservation in self.held if reservation not in self._leaving]
        idle = [victim for victim in self._victims if victim.reservation in staying]
        shortfall = missing - sum(reservation.size for reservation in self._leaving)
        suffices = shortfall <= sum(victim.reservation.size for victim in idle)
        if not suffices and not even_if_too_little and len(idle) < len(staying):
            return None
        chosen = _fewest(idle, shortfall)
        self._leaving |= {victim.reservation for victim in chosen}
        return [Evict(victim) for victim in chosen]


class MemoryBudget:
    """The memory that all engines of the host share, in bytes. For one event loop.

    ``victims`` returns the engines that could be put to sleep now, ``kept`` the bytes of those that never
    are.
    """

    def __init__(
        self, limit: int, victims: Callable[[], list[Victim]], kept: Callable[[], int] = lambda: 0
    ) -> None:
        self.limit = limit
        self._victims = victims
        self._kept = kept
        self._held: set[MemoryReservation] = set()
        self._waiting: dict[MemoryReservation, asyncio.Future[None]] = {}

    @property
    def used(self) -> int:
        """Bytes that are reserved."""
        return sum(reservation.size for reservation in self._held)

    def fits(self, size: int) -> bool:
        """Whether `reserve` would return at once, without an engine that must leave."""
        return not self._waiting and self.used + size <= self.limit

    async def reserve(self, size: int) -> MemoryReservation:
        """Wait until there is memory. An engine that needs more than the limit gets it once it is alone.

        Raises `InsufficientMemory` if it cannot be alone because engines that never sleep hold too much.
        """
        kept = self._kept()
        if kept and kept + size > self.limit:
            raise InsufficientMemory(size, self.limit, kept)
        reservation = MemoryReservation(size, self._on_changed)
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[reservation] = admitted
        try:
            self._carry_out()
            await admitted
        except BaseException:
            reservation.release()
            raise
        finally:
            self._waiting.pop(reservation, None)
        return reservation

    def _on_changed(self, reservation: MemoryReservation) -> None:
        if reservation.released:
            self._held.discard(reservation)
        self._carry_out()

    def recheck(self) -> None:
        """Plan again: an engine has become idle and may be put to sleep for a wake that waits."""
        self._carry_out()

    def _carry_out(self) -> None:
        if not self._waiting and self.used <= self.limit:
            return
        waiting = [reservation for reservation, admitted in self._waiting.items() if not admitted.done()]
        for decision in plan_memory(self.limit, self._held, waiting, self._victims()):
            if isinstance(decision, Admit):
                self._held.add(decision.reservation)
                self._waiting[decision.reservation].set_result(None)
            else:
                victim = decision.victim
                _logger.info(
                    "memory is short: an idle engine of %d MiB is put to sleep", victim.reservation.size >> 20
                )
                victim.reservation.leaving = True
                victim.evict()


def _fewest(victims: Sequence[Victim], shortfall: int) -> list[Victim]:
    """The first victims that together cover the shortfall, without those that the others make superfluous."""
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
