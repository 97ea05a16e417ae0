"""Which adapters one engine holds, which of them are in use, and which leaves first. Knows no engine."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from engines.adapter import Adapter
from engines.spec import LoraSettings


class Stage(StrEnum):
    """Of an adapter in an engine; only with the middle three is it given to requests."""

    LOADING = "loading"
    RECORDING = "recording"  # loaded for its canary to be recorded: for one lease alone
    FRESH = "fresh"  # loaded, its canary has not answered: the engine holds its answers back
    PROVEN = "proven"
    LEAVING = "leaving"  # its canary differs, or it is not wanted any more


@dataclass(slots=True, eq=False)
class Resident:
    """An adapter in an engine. ``name``: the engine's own for this load, ``number`` that of the load."""

    adapter: Adapter
    name: str
    number: int
    stage: Stage = Stage.LOADING
    leases: int = 0
    forgotten: bool = False  # it leaves with its last lease
    suspected: bool = False  # a request failed before its canary's verdict was known
    used_at: float = field(default_factory=time.monotonic)
    in_use_since: float = field(default_factory=time.monotonic)
    """Since when it has been in use without a break."""

    @property
    def in_use(self) -> bool:
        """Whether it has a slot that nobody else can have now."""
        return self.leases > 0 or self.stage is Stage.LOADING

    @property
    def usable(self) -> bool:
        """Whether requests may be given it."""
        return self.stage in (Stage.FRESH, Stage.PROVEN) and not (self.forgotten or self.suspected)

    @property
    def idle(self) -> bool:
        """Whether it may be unloaded without anybody's noticing."""
        return self.leases == 0 and self.stage in (Stage.FRESH, Stage.PROVEN, Stage.RECORDING)


class Slots:
    """The adapters of one engine by their digest: ``slots`` of them in use, ``cpu_slots`` loaded at most."""

    def __init__(self, settings: LoraSettings) -> None:
        self._settings = settings
        self._residents: dict[str, Resident] = {}
        self._loads = 0

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._residents.values())

    def __len__(self) -> int:
        return len(self._residents)

    def get(self, digest: str) -> Resident | None:
        """The adapter with this digest, whatever its stage."""
        return self._residents.get(digest)

    def named(self, name: str | None) -> Resident | None:
        """The adapter that the engine knows by this name."""
        return next((resident for resident in self if resident.name == name), None)

    @property
    def in_use(self) -> list[Resident]:
        """Those that have a slot, the one that has had it the longest first."""
        return sorted((one for one in self if one.in_use), key=lambda one: one.in_use_since)

    @property
    def spare(self) -> bool:
        """Whether one more may be in use."""
        return len(self.in_use) < self._settings.slots

    def room(self) -> bool:
        """Whether one more may be loaded now, in the place of an idle one if need be."""
        return self.spare and (len(self) < self._settings.cpu_slots or self.oldest() is not None)

    def oldest(self) -> Resident | None:
        """The one to unload for another, least recently used, where there is no free place."""
        idle = [resident for resident in self if resident.idle]
        return min(idle, key=lambda one: (not one.forgotten, one.used_at), default=None)

    def load(self, adapter: Adapter) -> tuple[Resident, Resident | None]:
        """A place for the adapter, which is to be loaded now, and who is to be unloaded before, if anybody.

        There must be `room`, and the adapter must not be there.
        """
        leaver = self.oldest() if len(self) >= self._settings.cpu_slots else None
        if leaver is not None:
            self.remove(leaver)
        self._loads += 1
        resident = Resident(adapter, f"{adapter.digest[:32]}.{self._loads}", self._loads)
        self._residents[adapter.digest] = resident
        return resident, leaver

    def take(self, resident: Resident) -> None:
        """One more request uses it."""
        now = time.monotonic()
        if not resident.in_use:
            resident.in_use_since = now
        resident.used_at = now
        resident.leases += 1

    def give_back(self, resident: Resident) -> None:
        """One request less uses it."""
        resident.leases -= 1
        resident.used_at = time.monotonic()

    def remove(self, resident: Resident) -> None:
        """It is not there any more."""
        if self._residents.get(resident.adapter.digest) is resident:
            del self._residents[resident.adapter.digest]

    def clear(self) -> None:
        """None is there any more. The numbers of loads go on."""
        self._residents.clear()
