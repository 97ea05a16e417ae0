"""One engine of a model, as its actor sees it.

A replica belongs to its actor: its methods are called from the actor's task alone. What takes time runs
beside it and posts its outcome to the actor's inbox.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from coldstart.sandbox.namespaces import SandboxError
from coldstart.snapshots.store import Snapshot
from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.errors import EngineBroken, EngineError, InsufficientMemory
from engines.lifecycle import waking
from engines.lifecycle.engine import Engine
from engines.lifecycle.health_watch import Watch
from engines.lifecycle.waking import Failed
from engines.policy import HostPolicy
from engines.pool.adapter_residency import AdapterEvents, Residency
from engines.pool.memory_budget import MemoryBudget
from engines.pool.memory_claim import Claim, Footprint
from engines.pool.replica_state import ReplicaView
from engines.spec import ModelSpec
from engines.status import EngineLease, EngineState, Wake

_logger = logging.getLogger("torpor.engine")


Finder = Callable[[], Awaitable[Snapshot | None]]
"""Looks for the snapshot that may be restored now."""


class AdapterFailures(AdapterEvents, Protocol):
    """`AdapterEvents`, and the one that is of the replica as a whole."""

    def on_unfit(self, replica: "Replica", adapter: Adapter) -> None: ...


class Listener(Protocol):
    """What a replica tells its actor."""

    @property
    def desk(self) -> AdapterFailures: ...

    def on_ready(self, replica: "Replica") -> None: ...
    def on_rested(self, replica: "Replica") -> None: ...
    def on_wake_failed(self, replica: "Replica", failure: str) -> None: ...
    def on_broken(self, replica: "Replica", failure: str) -> None: ...
    def on_proven(self, replica: "Replica") -> None: ...
    def on_not_restored(self, replica: "Replica", failure: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What replicas of one model are made with. ``post`` puts work into the actor's inbox."""

    spec: ModelSpec
    make: Callable[[], Engine]
    policy: HostPolicy
    budget: MemoryBudget
    post: Callable[[Callable[[], None]], None]
    listener: Listener
    footprint: Footprint


class Replica(ReplicaView):
    """An engine from its wake to its end. `wake` it once; `resume` it after each pause."""

    def __init__(self, parts: Parts, number: int) -> None:
        super().__init__(number, Claim(parts.budget, parts.spec.kv_cache_bytes))
        self._parts = parts
        self._engine: Engine | None = None
        self._engines: list[Engine] = []  # every one that was made, until it has been stopped
        self._goal: SleepTier | None = None  # the tier that it is on its way to
        self._stopping = False
        self._drain_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: list[asyncio.Task[None]] = []
        self.adapters = Residency(parts.spec.lora, parts.post, self, parts.listener.desk)

    @property
    def engine(self) -> Engine:
        """Raises `EngineBroken` when it has none."""
        if self._engine is None:
            raise EngineBroken("the engine has ended")
        return self._engine

    def wake(self, snapshot: Finder | None, bytes_needed: int) -> None:
        """Begin: from the snapshot that is found, and where that fails or is none, from nothing."""
        self.source = SleepTier.COLD if snapshot is None else SleepTier.SNAPSHOT
        self.state = EngineState.STARTING if snapshot is None else EngineState.RESTORING
        self.spawn(self._bring_up(snapshot, bytes_needed))

    def resume(self) -> None:
        """End its pause."""
        self.source = SleepTier.PAUSED
        self.state = EngineState.RESTORING
        self.claim.measured(self.memory_bytes, awake=True)
        self.spawn(self._thaw(self.engine))

    def lease(self, found: SleepTier, wake_s: float, adapter: Adapter | None = None) -> EngineLease:
        """A new lease on it; the adapter must be loaded."""
        spec, address = self._parts.spec, self.engine.address
        name, fresh = self.adapters.lend(adapter, fresh=self.unproven)
        lease = EngineLease(spec.id, address, found, wake_s, fresh, self.number, adapter, name)
        self.leases.add(lease)
        return lease

    def give_back(self, lease: EngineLease) -> None:
        """The lease has ended."""
        if lease not in self.leases:
            return
        self.leases.discard(lease)
        self.adapters.give_back(lease)
        self.relieved()

    def relieved(self) -> None:
        """It does something less."""
        if not self.busy:
            self.idle_since = time.monotonic()
            if self.state is EngineState.DRAINING:
                self._go()

    def suspect(self) -> None:
        """A request saw it fail."""
        if self._engine is not None and not self.suspected and not self._stopping:
            self.suspected = True
            self.spawn(self._examine(self._engine))

    def adapter_unfit(self, adapter: Adapter) -> None:
        """The canary of the adapter has differed again and again: it is the engine that is not fit."""
        self._parts.listener.desk.on_unfit(self, adapter)

    def rest(self, tier: SleepTier) -> None:
        """Let its requests end, for a bounded time, and put it to sleep: paused, or without a process."""
        if self._goal is None or tier is not SleepTier.PAUSED:
            self._goal = tier
        if self.state is EngineState.PAUSED:
            if tier is not SleepTier.PAUSED:
                self._go()
        elif self.state is EngineState.READY:
            self.state = EngineState.DRAINING
            if not self.busy:
                self._go()
                return
            loop, patience_s = asyncio.get_running_loop(), self._parts.policy.drain_timeout_s
            self._drain_timer = loop.call_later(patience_s, lambda: self._parts.post(self._cut_off))
        # While it wakes, or is dumped, it goes on its way first: see `_rise`.

    def leave(self) -> None:
        """Leave memory, if nobody would notice."""
        if self.idle and not self.pinned:
            self.rest(SleepTier.SNAPSHOT)
        elif not self._stopping:
            self.claim.stays()

    def withdraw(self) -> None:
        """Nobody waits for it any more, while it waits for memory: it gives up its place."""
        for task in self._tasks:
            task.cancel()
        self.state = EngineState.COLD

    async def dispose(self) -> None:
        """End everything of it, whatever it is doing."""
        self._unwatch()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        grace_s = self._parts.policy.stop_grace_s if self.state is not EngineState.PAUSED else 0.0
        await asyncio.gather(*(self._discard(engine, grace_s) for engine in list(self._engines)))
        self._dismiss()
        self.state = EngineState.COLD

    @asynccontextmanager
    async def held_still(self) -> AsyncIterator[Engine]:
        """Nobody gets a lease meanwhile, and nothing asks it for its health. It must be idle and ready.

        When that fails, it may be in pieces: nobody gets one either before it is known to be well.
        """
        self.state = EngineState.SNAPSHOTTING
        self._unwatch()
        try:
            yield self.engine
        except BaseException:
            self.suspect()
            raise
        finally:
            if self.state is EngineState.SNAPSHOTTING and self._engine is not None:
                self._rise(self._engine)

    # -- waking ---------------------------------------------------------------------------------------------

    async def _bring_up(self, find: Finder | None, bytes_needed: int) -> None:
        try:
            await self._rouse(find, bytes_needed)
        except Exception as error:
            # The outermost boundary of a wake: whoever waits for it must be told.
            _logger.exception("%s: the wake failed", self._parts.spec.id)
            failure = f"the engine could not be woken: {type(error).__name__}"
            await asyncio.gather(*(self._discard(engine) for engine in list(self._engines)))
            self._parts.post(lambda: self._on_failed(failure))

    async def _rouse(self, find: Finder | None, bytes_needed: int) -> None:
        post = self._parts.post
        if not await self._claim(bytes_needed):
            return
        began = time.perf_counter()
        awake = None
        snapshot = await find() if find is not None else None
        if snapshot is not None:
            awake = await waking.restore(self._new(), snapshot, self._parts.spec, self._parts.policy)
            self.snapshot_id = snapshot.id
            if isinstance(awake, Failed):
                failed = awake.failure
                await self._discard(awake.engine)
                post(lambda: self._not_restored(failed))
        elif find is not None:
            post(self._fell_back)
        if awake is None or isinstance(awake, Failed):
            if find is not None and not await self._claim(self._parts.footprint.cold()):
                return
            awake = await waking.start(self._new(), self._parts.spec)
        if isinstance(awake, Failed):
            failure = awake.failure
            await self._discard(awake.engine)
            post(lambda: self._on_failed(failure))
        else:
            risen = awake
            post(lambda: self._on_awake(risen.engine, risen.ms, began, proven=risen.proven))

    def _not_restored(self, failure: str) -> None:
        self._parts.listener.on_not_restored(self, failure)
        self.snapshot_id = None
        self._fell_back()

    async def _claim(self, size: int) -> bool:
        try:
            await self.claim.take(size)
        except InsufficientMemory as error:
            failure = str(error)
            self._parts.post(lambda: self._on_failed(failure))
            return False
        return True

    def _fell_back(self) -> None:
        self.source = SleepTier.COLD
        self.state = EngineState.STARTING

    async def _thaw(self, engine: Engine) -> None:
        began = time.perf_counter()
        try:
            await engine.resume()
        except EngineBroken as error:
            failure = str(error)
            self._parts.post(lambda: self.give_up(engine, failure))
        else:
            self._parts.post(lambda: self._on_awake(engine, {}, began, proven=True))

    def _on_awake(self, engine: Engine, ms: Mapping[str, float], began: float, *, proven: bool) -> None:
        if engine not in self._engines:  # disposed of meanwhile
            return
        self._engine, self.address = engine, engine.address
        self.ready_at = time.time()
        self._awake_at = self.idle_since = time.monotonic()
        total_ms = (time.perf_counter() - began) * 1000
        wake = Wake(self.ready_at, self.source, {**ms, "total": total_ms})
        self.wakes.append(wake)
        _logger.info("%s: awake from %s after %.0f ms", self._parts.spec.id, self.source, total_ms)
        if not proven:
            self.unproven = True
            self.spawn(self._prove(engine, wake))
        self._rise(engine)

    async def _prove(self, engine: Engine, wake: Wake) -> None:
        """The canary's verdict: until it is known, the engine itself holds its answers back."""
        try:
            ms = await engine.proof()
        except EngineError as error:
            failure = f"the restored engine is not fit: {error}"
            await waking.ending(engine)
            self._parts.post(lambda: self.give_up(engine, failure))
        else:
            wake.ms.update(ms)
            self._parts.post(lambda: self._on_proven(engine))

    def _on_proven(self, engine: Engine) -> None:
        if engine is self._engine:
            self.unproven = False
            self._parts.listener.on_proven(self)

    def _rise(self, engine: Engine) -> None:
        """It is ready, unless it was told to rest meanwhile."""
        self.state = EngineState.READY
        self._watch(engine)
        self._parts.listener.on_ready(self)
        if self._goal is not None and self.state is EngineState.READY:
            self.rest(self._goal)

    def _on_failed(self, failure: str) -> None:
        self._dismiss()
        self.state = EngineState.FAILED
        self._parts.listener.on_wake_failed(self, failure)

    def _watch(self, engine: Engine, *, frozen: bool = False) -> None:
        self._unwatch()
        post = self._parts.post
        watch = Watch(
            engine,
            self._parts.policy,
            on_broken=lambda how: post(lambda: self.give_up(engine, how)),
            on_measured=lambda size: post(lambda: self._on_measured(engine, size)),
        )
        self._watches = [self.spawn(watch.end())]
        if not frozen:
            self._watches.append(self.spawn(watch.health()))

    async def _examine(self, engine: Engine) -> None:
        if await engine.healthy():
            self._parts.post(lambda: self._on_found_well(engine))
        else:
            if self.unproven:
                await waking.ending(engine)
            self._parts.post(lambda: self.give_up(engine, "the engine failed a request and its health check"))

    def _on_found_well(self, engine: Engine) -> None:
        if engine is self._engine:
            self.suspected = False
            if self.state is EngineState.READY:
                self._parts.listener.on_ready(self)

    def _on_measured(self, engine: Engine, memory: int) -> None:
        if engine is self._engine:
            self.memory_bytes = memory
            self.claim.measured(memory, awake=self.state is not EngineState.PAUSED)

    def give_up(self, engine: Engine, how: str) -> None:
        """The engine has ended by itself, or must be considered dead. Its leases lead nowhere now."""
        if engine is not self._engine or self._stopping:
            return
        words = engine.last_words()
        self.unfit, self.broke_unproven = engine.unfit, self.unproven
        self._dismiss()
        self.spawn(self._discard(engine))
        self.state = EngineState.FAILED
        self._parts.listener.on_broken(self, f"{how}\n{words}")

    def _cut_off(self) -> None:
        if self.state is EngineState.DRAINING and self.busy:
            _logger.warning("%s: %d requests are cut off by the stop", self._parts.spec.id, len(self.leases))
            self._go()

    def _go(self) -> None:
        """Nothing runs on it any more: to the tier that it is on its way to."""
        engine, goal = self._engine, self._goal
        if engine is None or goal is None or self._stopping:
            return
        self._unwatch()
        if goal is SleepTier.PAUSED and not self.busy:
            self.spawn(self._freeze(engine))
        else:
            self._stopping = True
            self.claim.leaves()
            gentle = self.state is EngineState.DRAINING and goal is SleepTier.COLD
            self.state = EngineState.DRAINING
            self.spawn(self._end(engine, self._parts.policy.stop_grace_s if gentle else 0.0))

    async def _freeze(self, engine: Engine) -> None:
        try:
            await engine.pause()
            memory = await asyncio.to_thread(engine.memory_bytes)
        except EngineBroken as error:
            failure = str(error)
            self._parts.post(lambda: self.give_up(engine, failure))
        else:
            self._parts.post(lambda: self._on_frozen(engine, memory))

    def _on_frozen(self, engine: Engine, memory: int) -> None:
        if engine is not self._engine:
            return
        self.state = EngineState.PAUSED
        self.adapters.clear()
        self._on_measured(engine, memory)
        self._watch(engine, frozen=True)
        goal, self._goal = self._goal, None
        if goal is not SleepTier.PAUSED and goal is not None:
            self.rest(goal)
        else:
            self._parts.listener.on_rested(self)

    async def _end(self, engine: Engine, grace_s: float) -> None:
        await self._discard(engine, grace_s)
        self._parts.post(self._on_ended)

    def _on_ended(self) -> None:
        self._stopping = False
        self._dismiss()
        self.state = EngineState.COLD
        self._parts.listener.on_rested(self)

    def _new(self) -> Engine:
        engine = self._parts.make()
        self._engines.append(engine)
        return engine

    def _dismiss(self) -> None:
        """Forget the engine that ran."""
        self._unwatch()
        self._engine = self.address = None
        self.suspected = self.unproven = False
        self.leases = set()
        self.adapters.clear()
        self.ready_at = None
        self.memory_bytes = 0
        self.claim.release()

    def _unwatch(self) -> None:
        for watch in self._watches:
            watch.cancel()
        self._watches = []
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    async def _discard(self, engine: Engine, grace_s: float = 0.0) -> None:
        try:
            await engine.stop(grace_s)
        except (EngineError, SandboxError) as error:
            _logger.critical("%s: an engine could not be ended: %s", self._parts.spec.id, error)
        # Not when this is cancelled: `dispose` waits for the stop, which goes on.
        if engine in self._engines:
            self._engines.remove(engine)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
