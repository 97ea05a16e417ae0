"""The adapters of one replica: loaded on demand, proven, unloaded, and told to the actor.

Its methods are called from the actor's task alone. What takes time runs in tasks that post their outcome to
the actor's inbox, as those of the replica itself.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from engines.adapter import Adapter
from engines.errors import AdapterRejected, EngineBroken
from engines.lifecycle.engine import Engine
from engines.pool.adapter_slots import Resident, Slots, Stage
from engines.spec import LoraSettings
from engines.status import EngineLease, ResidentAdapter

# So often may the canary of an adapter differ in one engine, in a row: then it is the engine that is not fit.
_MISFITS = 2
_logger = logging.getLogger("torpor.engine")


class Owner(Protocol):
    """What the adapters need of the replica that they belong to: `engines.pool.replica.Replica` has it."""

    @property
    def engine(self) -> Engine: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
    def suspect(self) -> None: ...
    def relieved(self) -> None: ...
    def adapter_unfit(self, adapter: Adapter) -> None: ...


class AdapterEvents(Protocol):
    """What the actor hears of adapters: `engines.pool.adapter_failures` says what it does then."""

    def on_loaded(self) -> None: ...
    def on_misfit(self) -> None: ...
    def on_changed(self) -> None: ...
    def on_proven(self, adapter: Adapter) -> None: ...
    def on_rejected(self, adapter: Adapter, refusal: AdapterRejected) -> None: ...
    def on_not_loaded(self, adapter: Adapter) -> None: ...


class Residency:
    """Which adapters the engine of a replica holds. ``tainted``: whether it has ever held one."""

    def __init__(
        self,
        lora: LoraSettings | None,
        post: Callable[[Callable[[], None]], None],
        owner: Owner,
        events: AdapterEvents,
    ) -> None:
        self.slots = Slots(lora or LoraSettings())
        self.tainted = False
        self._post = post
        self._owner = owner
        self._events = events
        self._misfits: dict[str, int] = {}  # in a row, by digest

    @property
    def changing(self) -> bool:
        """Whether the engine is loading, proving or unloading one: it must not go to sleep meanwhile."""
        return any(one.stage in (Stage.LOADING, Stage.FRESH, Stage.LEAVING) for one in self.slots)

    def status(self) -> tuple[ResidentAdapter, ...]:
        """As they are now, without those that are not given to requests."""
        return tuple(
            ResidentAdapter(one.adapter.digest, one.leases, proven=one.stage is Stage.PROVEN)
            for one in self.slots
            if one.usable
        )

    def load(self, adapter: Adapter) -> None:
        """Begin. There must be room, and the adapter must not be there."""
        self.tainted = True
        resident, leaver = self.slots.load(adapter)
        self._owner.spawn(self._load(self._owner.engine, resident, leaver))

    async def _load(self, engine: Engine, resident: Resident, leaver: Resident | None) -> None:
        adapter, post = resident.adapter, self._post
        try:
            leaving = None if leaver is None else leaver.name
            await engine.adapters.load(adapter, resident.name, resident.number, leaving)
        except AdapterRejected as error:
            refusal = error
            post(lambda: self._on_rejected(resident, refusal))
        except EngineBroken as error:
            _logger.warning("an adapter could not be loaded: %s", error)
            post(lambda: self._on_not_loaded(resident))
        else:
            post(lambda: self._on_loaded(engine, resident))

    def _on_loaded(self, engine: Engine, resident: Resident) -> None:
        if not self._there(resident):
            return
        if resident.adapter.canary is None:
            resident.stage = Stage.RECORDING
        else:
            resident.stage = Stage.FRESH
            self._owner.spawn(self._prove(engine, resident))
        self._owner.relieved()
        self._events.on_loaded()

    def _on_rejected(self, resident: Resident, refusal: AdapterRejected) -> None:
        if self._there(resident):
            self.slots.remove(resident)
            self._owner.relieved()
            self._events.on_rejected(resident.adapter, refusal)

    def _on_not_loaded(self, resident: Resident) -> None:
        if self._there(resident):
            self.slots.remove(resident)
            self._owner.suspect()
            self._owner.relieved()
        self._events.on_not_loaded(resident.adapter)

    async def _prove(self, engine: Engine, resident: Resident) -> None:
        post = self._post
        try:
            proof = await engine.adapters.proof(resident.name)
        except EngineBroken as error:
            _logger.warning("the canary of an adapter is not known: %s", error)
            post(lambda: self._on_unproven(engine, resident))
            return
        how = f"the canary of an adapter differs by {proof['deviation']:.3g}, share {proof['share']}"
        if proof["fit"]:
            post(lambda: self._on_proven(resident))
        else:
            post(lambda: self._on_misfit(engine, resident, how))

    def _on_proven(self, resident: Resident) -> None:
        self._misfits.pop(resident.adapter.digest, None)
        if self._there(resident) and resident.stage is Stage.FRESH:
            resident.stage, resident.suspected = Stage.PROVEN, False
            self._owner.relieved()
            self._events.on_proven(resident.adapter)

    def _on_unproven(self, engine: Engine, resident: Resident) -> None:
        if self._there(resident) and resident.stage is Stage.FRESH:
            self._evict(engine, resident)
            self._owner.suspect()

    def _on_misfit(self, engine: Engine, resident: Resident, how: str) -> None:
        if not self._there(resident):
            return
        digest = resident.adapter.digest
        _logger.error("%s: %s", resident.name, how)
        self._events.on_misfit()
        self._evict(engine, resident)
        self._misfits[digest] = self._misfits.get(digest, 0) + 1
        if self._misfits[digest] >= _MISFITS:
            del self._misfits[digest]
            self._owner.adapter_unfit(resident.adapter)

    def lend(self, adapter: Adapter | None, *, fresh: bool) -> tuple[str | None, bool]:
        """A lease on it is given: the engine's name for it, and whether a canary has not answered yet.

        It must be loaded; without an adapter there is nothing to lend. ``fresh``: of the engine itself.
        """
        resident = None if adapter is None else self.slots.get(adapter.digest)
        if resident is None:
            return None, fresh
        self.slots.take(resident)
        return resident.name, fresh or resident.stage is Stage.FRESH

    def give_back(self, lease: EngineLease) -> None:
        """A lease has ended."""
        resident = self.slots.named(lease.internal_name)
        if resident is None or not resident.leases:
            return
        self.slots.give_back(resident)
        if resident.idle and (resident.forgotten or resident.stage is Stage.RECORDING):
            self._evict(self._owner.engine, resident)

    def suspect(self, lease: EngineLease) -> None:
        """A request for it failed before its canary's verdict was known: it is given to nobody until then."""
        resident = self.slots.named(lease.internal_name)
        if resident is not None and resident.stage is Stage.FRESH:
            resident.suspected = True

    def forget(self, digest: str) -> None:
        """It is not wanted any more."""
        resident = self.slots.get(digest)
        if resident is None:
            return
        resident.forgotten = True
        if resident.idle:
            self._evict(self._owner.engine, resident)

    def _evict(self, engine: Engine, resident: Resident) -> None:
        resident.stage = Stage.LEAVING
        self._owner.spawn(self._unload(engine, resident))

    async def _unload(self, engine: Engine, resident: Resident) -> None:
        try:
            await engine.adapters.unload(resident.name)
        except EngineBroken as error:
            _logger.warning("an adapter could not be unloaded: %s", error)
            self._post(self._owner.suspect)
        self._post(lambda: self._on_unloaded(resident))

    def _on_unloaded(self, resident: Resident) -> None:
        self.slots.remove(resident)
        self._owner.relieved()
        self._events.on_changed()

    def _there(self, resident: Resident) -> bool:
        return self.slots.get(resident.adapter.digest) is resident

    def clear(self) -> None:
        """The engine sleeps, or has ended: it holds none."""
        self.slots.clear()
        self._misfits.clear()
