"""Which adapters one engine holds, which of them are in use, and which leaves first. State only."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from engines.adapter import Adapter
from engines.spec import LoraSettings
from engines.status import ResidentAdapter


class Stage(StrEnum):
    """How far an adapter is in an engine. Requests may be given it in the middle three stages."""

    LOADING = "loading"
    RECORDING = "recording"  # loaded to record its canary, for one lease
    UNVERIFIED = "unverified"  # loaded, its canary has not answered: the engine holds its answers back
    VERIFIED = "verified"
    LEAVING = "leaving"  # its canary differs, or it was deleted


@dataclass(slots=True, eq=False)
class LoadedAdapter:
    """An adapter in an engine. ``name``: the engine's name for this load, ``number`` that of the load."""

    adapter: Adapter
    name: str
    number: int
    stage: Stage = Stage.LOADING
    leases: int = 0
    deleted: bool = False  # it leaves with its last lease
    suspected: bool = False  # a request failed before its canary answered
    used_at: float = field(default_factory=time.monotonic)
    in_use_since: float = field(default_factory=time.monotonic)
    """Since when it has been in use without a break."""

    @property
    def in_use(self) -> bool:
        """Whether it has a slot that no other adapter can get now."""
        return self.leases > 0 or self.stage is Stage.LOADING

    @property
    def usable(self) -> bool:
        """Whether requests may be given it."""
        return self.stage in (Stage.UNVERIFIED, Stage.VERIFIED) and not (self.deleted or self.suspected)

    @property
    def idle(self) -> bool:
        """Whether it may be unloaded without an effect on a request."""
        return self.leases == 0 and self.stage in (Stage.UNVERIFIED, Stage.VERIFIED, Stage.RECORDING)


class AdapterSlots:
    """The adapters of one engine by their digest: ``slots`` of them in use, ``cpu_slots`` loaded at most."""

    def __init__(self, settings: LoraSettings) -> None:
        self._settings = settings
        self._adapters: dict[str, LoadedAdapter] = {}
        self._loads = 0

    def __iter__(self) -> Iterator[LoadedAdapter]:
        return iter(self._adapters.values())

    def __len__(self) -> int:
        return len(self._adapters)

    def copy(self) -> Self:
        """The same state, to plan on: what is changed there changes nothing here."""
        copy = type(self)(self._settings)
        copy._adapters = {digest: replace(loaded) for digest, loaded in self._adapters.items()}  # noqa: SLF001
        copy._loads = self._loads  # noqa: SLF001
        return copy

    def get(self, digest: str) -> LoadedAdapter | None:
        """The adapter with this digest, whatever its stage."""
        return self._adapters.get(digest)

    def named(self, name: str | None) -> LoadedAdapter | None:
        """The adapter that the engine knows by this name."""
        return next((loaded for loaded in self if loaded.name == name), None)

    @property
    def in_use(self) -> list[LoadedAdapter]:
        """The adapters that have a slot, the one that has had it the longest first."""
        return sorted((loaded for loaded in self if loaded.in_use), key=lambda loaded: loaded.in_use_since)

    @property
    def has_spare(self) -> bool:
        """Whether one more may be in use."""
        return sum(loaded.in_use for loaded in self) < self._settings.slots

    @property
    def changing(self) -> bool:
        """Whether one is being loaded, verified or unloaded: the engine must not go to sleep then."""
        return any(loaded.stage in (Stage.LOADING, Stage.UNVERIFIED, Stage.LEAVING) for loaded in self)

    def has_room(self) -> bool:
        """Whether one more may be loaded now, if need be instead of an idle one."""
        return self.has_spare and (len(self) < self._settings.cpu_slots or self.next_to_leave() is not None)

    def next_to_leave(self) -> LoadedAdapter | None:
        """The idle adapter to unload for another: a deleted one, else the least recently used."""
        idle = [loaded for loaded in self if loaded.idle]
        return min(idle, key=lambda loaded: (not loaded.deleted, loaded.used_at), default=None)

    def load(self, adapter: Adapter) -> tuple[LoadedAdapter, LoadedAdapter | None]:
        """Put the adapter into a slot; also returned is the one that is unloaded for it, if any.

        Call it only if `has_room` and the adapter is not there.
        """
        evicted = self.next_to_leave() if len(self) >= self._settings.cpu_slots else None
        if evicted is not None:
            self.remove(evicted)
        self._loads += 1
        loaded = LoadedAdapter(adapter, f"{adapter.digest[:32]}.{self._loads}", self._loads)
        self._adapters[adapter.digest] = loaded
        return loaded, evicted

    def take(self, loaded: LoadedAdapter) -> None:
        """Count one more request that uses the adapter."""
        now = time.monotonic()
        if not loaded.in_use:
            loaded.in_use_since = now
        loaded.used_at = now
        loaded.leases += 1

    def give_back(self, loaded: LoadedAdapter) -> None:
        """Count one request less that uses the adapter."""
        loaded.leases -= 1
        loaded.used_at = time.monotonic()

    def remove(self, loaded: LoadedAdapter) -> None:
        """Forget an adapter that the engine no longer holds."""
        if self._adapters.get(loaded.adapter.digest) is loaded:
            del self._adapters[loaded.adapter.digest]

    def clear(self) -> None:
        """Forget all of them. The numbers of loads go on."""
        self._adapters.clear()

    def status(self) -> tuple[ResidentAdapter, ...]:
        """The adapters that requests may be given now."""
        return tuple(
            ResidentAdapter(loaded.adapter.digest, loaded.leases, verified=loaded.stage is Stage.VERIFIED)
            for loaded in self
            if loaded.usable
        )
