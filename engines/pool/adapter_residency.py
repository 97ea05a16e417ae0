"""The adapters of one replica: loads them on demand, verifies them, unloads them, and reports to the actor.

The methods are called from the actor's task alone. Slow work runs in tasks that post their outcome to the
actor's inbox, as those of the replica itself do.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from engines.adapter import Adapter
from engines.errors import AdapterRejected, EngineBroken
from engines.lifecycle.engine import Engine
from engines.pool.adapter_slots import AdapterSlots, LoadedAdapter, Stage
from engines.status import EngineLease

_MAX_MISMATCHES = 2
"""After this many consecutive mismatches in one engine, distrust the engine rather than the adapter."""
_logger = logging.getLogger("torpor.engine")


class AdapterOwner(Protocol):
    """What the adapters need of their replica (`engines.pool.replica.Replica`)."""

    @property
    def engine(self) -> Engine: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
    def suspect(self) -> None: ...
    def on_less_busy(self) -> None: ...
    def on_adapter_mismatches(self, adapter: Adapter) -> None: ...


class AdapterEvents(Protocol):
    """What happened to an adapter in an engine (`engines.pool.adapter_failures` reacts to it)."""

    def on_loaded(self) -> None: ...
    def on_mismatch(self) -> None: ...
    def on_changed(self) -> None: ...
    def on_verified(self, adapter: Adapter) -> None: ...
    def on_rejected(self, adapter: Adapter, refusal: AdapterRejected) -> None: ...
    def on_not_loaded(self, adapter: Adapter) -> None: ...


class AdapterResidency:
    """Changes which adapters the engine of a replica holds."""

    def __init__(
        self,
        slots: AdapterSlots,
        post: Callable[[Callable[[], None]], None],
        owner: AdapterOwner,
        events: AdapterEvents,
    ) -> None:
        self._slots = slots
        self._post = post
        self._owner = owner
        self._events = events
        self._mismatches: dict[str, int] = {}  # consecutive, by digest

    def load(self, adapter: Adapter) -> None:
        """Begin to load the adapter. There must be room, and it must not be there."""
        loaded, evicted = self._slots.load(adapter)
        self._owner.spawn(self._load(self._owner.engine, loaded, evicted))

    async def _load(self, engine: Engine, loaded: LoadedAdapter, evicted: LoadedAdapter | None) -> None:
        adapter, post = loaded.adapter, self._post
        try:
            evicted_name = None if evicted is None else evicted.name
            await engine.adapters.load(adapter, loaded.name, loaded.number, evicted_name)
        except AdapterRejected as error:
            refusal = error
            post(lambda: self._on_rejected(loaded, refusal))
        except EngineBroken as error:
            _logger.warning("an adapter could not be loaded: %s", error)
            post(lambda: self._on_not_loaded(loaded))
        else:
            post(lambda: self._on_loaded(engine, loaded))

    def _on_loaded(self, engine: Engine, loaded: LoadedAdapter) -> None:
        if not self._holds(loaded):
            return
        if loaded.adapter.canary is None:
            loaded.stage = Stage.RECORDING
        else:
            loaded.stage = Stage.UNVERIFIED
            self._owner.spawn(self._verify(engine, loaded))
        self._owner.on_less_busy()
        self._events.on_loaded()

    def _on_rejected(self, loaded: LoadedAdapter, refusal: AdapterRejected) -> None:
        if self._holds(loaded):
            self._slots.remove(loaded)
            self._owner.on_less_busy()
            self._events.on_rejected(loaded.adapter, refusal)

    def _on_not_loaded(self, loaded: LoadedAdapter) -> None:
        if self._holds(loaded):
            self._slots.remove(loaded)
            self._owner.suspect()
            self._owner.on_less_busy()
        self._events.on_not_loaded(loaded.adapter)

    async def _verify(self, engine: Engine, loaded: LoadedAdapter) -> None:
        post = self._post
        try:
            proof = await engine.adapters.proof(loaded.name)
        except EngineBroken as error:
            _logger.warning("the canary of an adapter could not be computed: %s", error)
            post(lambda: self._on_verification_failed(engine, loaded))
            return
        how = f"the canary of an adapter differs by {proof['deviation']:.3g}, share {proof['share']}"
        if proof["fit"]:
            post(lambda: self._on_verified(loaded))
        else:
            post(lambda: self._on_mismatch(engine, loaded, how))

    def _on_verified(self, loaded: LoadedAdapter) -> None:
        self._mismatches.pop(loaded.adapter.digest, None)
        if self._holds(loaded) and loaded.stage is Stage.UNVERIFIED:
            loaded.stage, loaded.suspected = Stage.VERIFIED, False
            self._owner.on_less_busy()
            self._events.on_verified(loaded.adapter)

    def _on_verification_failed(self, engine: Engine, loaded: LoadedAdapter) -> None:
        if self._holds(loaded) and loaded.stage is Stage.UNVERIFIED:
            self._evict(engine, loaded)
            self._owner.suspect()

    def _on_mismatch(self, engine: Engine, loaded: LoadedAdapter, how: str) -> None:
        if not self._holds(loaded):
            return
        digest = loaded.adapter.digest
        _logger.error("%s: %s", loaded.name, how)
        self._events.on_mismatch()
        self._evict(engine, loaded)
        self._mismatches[digest] = self._mismatches.get(digest, 0) + 1
        if self._mismatches[digest] >= _MAX_MISMATCHES:
            del self._mismatches[digest]
            self._owner.on_adapter_mismatches(loaded.adapter)

    def take(self, adapter: Adapter | None, *, unverified: bool) -> tuple[str | None, bool]:
        """Count a lease on the adapter, which must be loaded.

        Returns the engine's name for it, and whether a canary has not answered yet: the adapter's, or the
        engine's own, which ``unverified`` says. Without an adapter the name is None.
        """
        if adapter is None or (loaded := self._slots.get(adapter.digest)) is None:
            return None, unverified
        self._slots.take(loaded)
        return loaded.name, unverified or loaded.stage is Stage.UNVERIFIED

    def give_back(self, lease: EngineLease) -> None:
        """Count the end of a lease; unload the adapter if it was deleted, or loaded only to be recorded."""
        loaded = self._slots.named(lease.internal_name)
        if loaded is None or not loaded.leases:
            return
        self._slots.give_back(loaded)
        if loaded.idle and (loaded.deleted or loaded.stage is Stage.RECORDING):
            self._evict(self._owner.engine, loaded)

    def suspect(self, lease: EngineLease) -> None:
        """Note that a request failed before the adapter's canary answered: no request gets it until then."""
        loaded = self._slots.named(lease.internal_name)
        if loaded is not None and loaded.stage is Stage.UNVERIFIED:
            loaded.suspected = True

    def delete(self, digest: str) -> None:
        """Unload the adapter, which was deleted, once no request uses it."""
        loaded = self._slots.get(digest)
        if loaded is None:
            return
        loaded.deleted = True
        if loaded.idle:
            self._evict(self._owner.engine, loaded)

    def _evict(self, engine: Engine, loaded: LoadedAdapter) -> None:
        loaded.stage = Stage.LEAVING
        self._owner.spawn(self._unload(engine, loaded))

    async def _unload(self, engine: Engine, loaded: LoadedAdapter) -> None:
        try:
            await engine.adapters.unload(loaded.name)
        except EngineBroken as error:
            _logger.warning("an adapter could not be unloaded: %s", error)
            self._post(self._owner.suspect)
        self._post(lambda: self._on_unloaded(loaded))

    def _on_unloaded(self, loaded: LoadedAdapter) -> None:
        self._slots.remove(loaded)
        self._owner.on_less_busy()
        self._events.on_changed()

    def _holds(self, loaded: LoadedAdapter) -> bool:
        return self._slots.get(loaded.adapter.digest) is loaded

    def clear(self) -> None:
        """Forget all adapters: the engine sleeps, or has ended."""
        self._slots.clear()
        self._mismatches.clear()
