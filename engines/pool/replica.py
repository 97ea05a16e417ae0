"""One engine of a model: woken, paused, verified, ended.

A replica belongs to its actor: its methods are called from the actor's task alone. Slow work runs in tasks
that post their outcome to the actor's inbox.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from coldstart.sandbox.namespaces import SandboxError
from coldstart.snapshots.store import Snapshot
from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.errors import EngineBroken, EngineError, InsufficientMemory
from engines.lifecycle import waking
from engines.lifecycle.engine import Engine
from engines.lifecycle.health_watch import Watch
from engines.lifecycle.waking import Awake, Failed
from engines.policy import HostPolicy
from engines.pool.adapter_residency import AdapterEvents, AdapterResidency
from engines.pool.adapter_slots import AdapterSlots
from engines.pool.memory_budget import MemoryBudget
from engines.pool.memory_claim import Footprint, MemoryClaim
from engines.pool.replica_state import ReplicaState
from engines.spec import LoraSettings, ModelSpec
from engines.status import EngineLease, EngineState, Wake

_logger = logging.getLogger("torpor.engine")

FindSnapshot = Callable[[], Awaitable[Snapshot | None]]
"""Looks for the snapshot that may be restored now."""


class ReplicaEvents(Protocol):
    """What a replica reports to its actor."""

    @property
    def adapter_events(self) -> AdapterEvents: ...

    def on_ready(self, replica: "Replica") -> None: ...
    def on_woken(self, replica: "Replica", wake: Wake) -> None: ...
    def on_verified(self, replica: "Replica", wake: Wake, canary_ms: Mapping[str, float]) -> None: ...
    def on_rested(self, replica: "Replica") -> None: ...
    def on_wake_failed(self, replica: "Replica", failure: str) -> None: ...
    def on_broken(self, replica: "Replica", failure: str) -> None: ...
    def on_not_restored(self, replica: "Replica", failure: str) -> None: ...
    def on_adapter_mismatches(self, replica: "Replica", adapter: Adapter) -> None: ...


@dataclass(frozen=True, slots=True)
class ReplicaDependencies:
    """What all replicas of one model are made with. ``post`` puts work into the actor's inbox."""

    spec: ModelSpec
    make: Callable[[], Engine]
    policy: HostPolicy
    budget: MemoryBudget
    post: Callable[[Callable[[], None]], None]
    events: ReplicaEvents
    footprint: Footprint


class Replica(ReplicaState):
    """An engine from its wake to its end. `wake` it once; `resume` it after each pause.

    It has more methods and attributes than other classes because it is one state machine: what the engine is
    doing, what it is to do next, and the tasks and timers of both.
    """

    def __init__(self, dependencies: ReplicaDependencies, number: int) -> None:
        spec = dependencies.spec
        slots = AdapterSlots(spec.lora or LoraSettings())
        super().__init__(number, MemoryClaim(dependencies.budget, spec.kv_cache_bytes), slots)
        self._dependencies = dependencies
        self._spec = spec
        self._post = dependencies.post
        self._events = dependencies.events
        self._engine: Engine | None = None
        self._engines: list[Engine] = []  # every engine, until it has been stopped
        self._goal: SleepTier | None = None  # the tier that it is on its way to
        self._stopping = False
        self._drain_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: list[asyncio.Task[None]] = []
        self.adapters = AdapterResidency(slots, self._post, self, self._events.adapter_events)

    @property
    def engine(self) -> Engine:
        """The engine that runs. Raises `EngineBroken` if none does."""
        if self._engine is None:
            raise EngineBroken("the engine has ended")
        return self._engine

    def wake(self, find: FindSnapshot | None, bytes_needed: int) -> None:
        """Begin to wake: from the snapshot if ``find`` returns one that can be restored, else cold."""
        self.source = SleepTier.COLD if find is None else SleepTier.SNAPSHOT
        self.state = EngineState.STARTING if find is None else EngineState.RESTORING
        self.spawn(self._wake(find, bytes_needed))

    def resume(self) -> None:
        """End the pause."""
        self.source = SleepTier.PAUSED
        self.state = EngineState.RESTORING
        self.claim.measured(self.memory_bytes, awake=True)
        self.spawn(self._resume(self.engine))

    def lease(self, tier: SleepTier, wake_s: float, adapter: Adapter | None = None) -> EngineLease:
        """Give a new lease; the adapter must be loaded. ``tier``, ``wake_s``: as `EngineLease` has them."""
        name, unverified = self.adapters.take(adapter, unverified=self.unverified)
        lease = EngineLease(
            self._spec.id, self.engine.address, tier, wake_s, unverified, self.number, adapter, name
        )
        self.leases.add(lease)
        self.served = True
        return lease

    def give_back(self, lease: EngineLease) -> None:
        """End a lease, if it is one of this replica's."""
        if lease not in self.leases:
            return
        self.leases.discard(lease)
        self.adapters.give_back(lease)
        self.on_less_busy()

    def on_less_busy(self) -> None:
        """Go on with a drain if the lease, or the change of an adapter, that has ended was the last."""
        if not self.busy:
            self.idle_since = time.monotonic()
            if self.state is EngineState.DRAINING:
                self._go_to_sleep()

    def suspect(self) -> None:
        """Check the health of the engine, which a request saw fail. It is not leased until then."""
        if self._engine is not None and not self.suspected and not self._stopping:
            self.suspected = True
            self.spawn(self._examine(self._engine))

    def on_adapter_mismatches(self, adapter: Adapter) -> None:
        """Report that the adapter's canary has differed again and again: the engine is to be distrusted."""
        self._events.on_adapter_mismatches(self, adapter)

    def rest(self, tier: SleepTier) -> None:
        """Let the requests end, for a bounded time, and put the engine to sleep in the tier."""
        if self._goal is None or tier is not SleepTier.PAUSED:
            self._goal = tier
        if self.state is EngineState.PAUSED:
            if tier is not SleepTier.PAUSED:
                self._go_to_sleep()
        elif self.state is EngineState.READY:
            self.state = EngineState.DRAINING
            if not self.busy:
                self._go_to_sleep()
                return
            loop, timeout_s = asyncio.get_running_loop(), self._dependencies.policy.drain_timeout_s
            self._drain_timer = loop.call_later(timeout_s, lambda: self._post(self._cut_off))
        # While it wakes, or is dumped, it becomes ready first: see `_become_ready`.

    def leave(self) -> None:
        """Leave memory, unless the engine is needed again."""
        if self.idle:
            self.rest(SleepTier.SNAPSHOT)
        elif not self._stopping:
            self.claim.stays()

    def withdraw(self) -> None:
        """Give up a wake that waits for memory and is not needed."""
        for task in self._tasks:
            task.cancel()
        self.state = EngineState.COLD

    async def dispose(self) -> None:
        """End every engine and task of the replica, whatever it is doing."""
        self._unwatch()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        grace_s = self._dependencies.policy.stop_grace_s if self.state is not EngineState.PAUSED else 0.0
        await asyncio.gather(*(self._discard(engine, grace_s) for engine in list(self._engines)))
        self._forget_engine()
        self.state = EngineState.COLD

    def hold(self) -> None:
        """Give no lease and check no health until `let_go`. The replica must be idle and ready."""
        self.state = EngineState.SNAPSHOTTING
        self._unwatch()

    def let_go(self, *, damaged: bool = False) -> None:
        """Be ready again. If the engine may be damaged, no lease is given before its health was checked."""
        if damaged:
            self.suspect()
        if self.state is EngineState.SNAPSHOTTING and self._engine is not None:
            self._become_ready(self._engine)

    # -- waking ---------------------------------------------------------------------------------------------

    async def _wake(self, find: FindSnapshot | None, bytes_needed: int) -> None:
        try:
            if await self._claim_memory(bytes_needed):
                began = time.perf_counter()
                awake = None if find is None else await self._restore(find)
                if awake is None and (find is None or await self._claim_memory(self._cold_bytes())):
                    awake = await self._start_cold()
                if awake is not None:
                    self._post(partial(self._on_awake, awake, began))
        except Exception as error:
            # The outermost boundary of a wake: the waiters must be served or fail.
            _logger.exception("%s: the wake failed", self._spec.id)
            failure = f"the engine could not be woken: {type(error).__name__}"
            await asyncio.gather(*(self._discard(engine) for engine in list(self._engines)))
            self._post(partial(self._on_wake_failed, failure))

    async def _restore(self, find: FindSnapshot) -> Awake | None:
        """The restored engine; None if there is no usable snapshot, or its restore has failed."""
        snapshot = await find()
        if snapshot is None:
            self._post(self._fall_back)
            return None
        self.snapshot_id = snapshot.id
        awake = await waking.restore(self._new_engine(), snapshot, self._spec, self._dependencies.policy)
        if isinstance(awake, Failed):
            await self._discard(awake.engine)
            self._post(partial(self._on_not_restored, awake.failure))
            return None
        return awake

    async def _start_cold(self) -> Awake | None:
        """The engine, started from the weights; None if that has failed, which is reported."""
        awake = await waking.start(self._new_engine(), self._spec)
        if isinstance(awake, Failed):
            await self._discard(awake.engine)
            self._post(partial(self._on_wake_failed, awake.failure))
            return None
        return awake

    def _on_not_restored(self, failure: str) -> None:
        self._events.on_not_restored(self, failure)
        self.snapshot_id = None
        self._fall_back()

    def _cold_bytes(self) -> int:
        return self._dependencies.footprint.cold()

    async def _claim_memory(self, size: int) -> bool:
        try:
            await self.claim.take(size)
        except InsufficientMemory as error:
            self._post(partial(self._on_wake_failed, str(error)))
            return False
        return True

    def _fall_back(self) -> None:
        self.source = SleepTier.COLD
        self.state = EngineState.STARTING

    async def _resume(self, engine: Engine) -> None:
        began = time.perf_counter()
        try:
            await engine.resume()
        except EngineBroken as error:
            self._post(partial(self.give_up, engine, str(error)))
        else:
            self._post(partial(self._on_awake, Awake(engine, {}, verified=True), began))

    def _on_awake(self, awake: Awake, began: float) -> None:
        engine = awake.engine
        if engine not in self._engines:  # it was disposed of
            return
        self._engine, self.address = engine, engine.address
        self.ready_at = time.time()
        self.awake_since = self.idle_since = time.monotonic()
        total_ms = (time.perf_counter() - began) * 1000
        _logger.info("%s: awake from %s after %.0f ms", self._spec.id, self.source, total_ms)
        wake = Wake(self.ready_at, self.source, {**awake.ms, "total": total_ms})
        self._events.on_woken(self, wake)
        if not awake.verified:
            self.unverified = True
            self.spawn(self._verify(engine, wake))
        self._become_ready(engine)

    async def _verify(self, engine: Engine, wake: Wake) -> None:
        """Wait for the canary's verdict. Until then the engine itself holds its answers back."""
        try:
            canary_ms = await engine.proof()
        except EngineError as error:
            failure = f"the canary of the restored engine failed: {error}"
            await waking.ending(engine)
            self._post(partial(self.give_up, engine, failure))
        else:
            self._post(partial(self._on_verified, engine, wake, canary_ms))

    def _on_verified(self, engine: Engine, wake: Wake, canary_ms: Mapping[str, float]) -> None:
        if engine is self._engine:
            self.unverified = False
            self._events.on_verified(self, wake, canary_ms)

    def _become_ready(self, engine: Engine) -> None:
        """Be ready, and go on to the tier that `rest` has named in the meantime, if it has."""
        self.state = EngineState.READY
        self._watch(engine)
        self._events.on_ready(self)
        if self._goal is not None and self.state is EngineState.READY:
            self.rest(self._goal)

    def _on_wake_failed(self, failure: str) -> None:
        self._forget_engine()
        self.state = EngineState.FAILED
        self._events.on_wake_failed(self, failure)

    # -- health ---------------------------------------------------------------------------------------------

    def _watch(self, engine: Engine, *, frozen: bool = False) -> None:
        self._unwatch()
        watch = Watch(
            engine,
            self._dependencies.policy,
            on_broken=lambda how: self._post(partial(self.give_up, engine, how)),
            on_measured=lambda size: self._post(partial(self._on_measured, engine, size)),
        )
        self._watches = [self.spawn(watch.end())]
        if not frozen:
            self._watches.append(self.spawn(watch.health()))

    async def _examine(self, engine: Engine) -> None:
        if await engine.healthy():
            self._post(partial(self._on_healthy, engine))
        else:
            if self.unverified:
                await waking.ending(engine)
            self._post(partial(self.give_up, engine, "the engine failed a request and its health check"))

    def _on_healthy(self, engine: Engine) -> None:
        if engine is self._engine:
            self.suspected = False
            if self.state is EngineState.READY:
                self._events.on_ready(self)

    def _on_measured(self, engine: Engine, memory: int) -> None:
        if engine is self._engine:
            self.memory_bytes = memory
            self.claim.measured(memory, awake=self.state is not EngineState.PAUSED)

    def give_up(self, engine: Engine, failure: str) -> None:
        """End an engine that has ended by itself, or must be considered dead, and report it as broken."""
        if engine is not self._engine or self._stopping:
            return
        last_words = engine.last_words()
        self.canary_failed, self.broke_unverified = engine.canary_failed, self.unverified
        self._forget_engine()
        self.spawn(self._discard(engine))
        self.state = EngineState.FAILED
        self._events.on_broken(self, f"{failure}\n{last_words}")

    # -- going to sleep -------------------------------------------------------------------------------------

    def _cut_off(self) -> None:
        if self.state is EngineState.DRAINING and self.busy:
            _logger.warning("%s: %d requests are cut off by the stop", self._spec.id, len(self.leases))
            self._go_to_sleep()

    def _go_to_sleep(self) -> None:
        """Go to the tier that `rest` has named. A request that still runs on the engine is cut off."""
        engine, goal = self._engine, self._goal
        if engine is None or goal is None or self._stopping:
            return
        self._unwatch()
        if goal is SleepTier.PAUSED and not self.busy:
            self.spawn(self._pause(engine))
        else:
            self._stopping = True
            self.claim.leaves()
            gentle = self.state is EngineState.DRAINING and goal is SleepTier.COLD
            self.state = EngineState.DRAINING
            self.spawn(self._end(engine, self._dependencies.policy.stop_grace_s if gentle else 0.0))

    async def _pause(self, engine: Engine) -> None:
        try:
            await engine.pause()
            memory = await asyncio.to_thread(engine.memory_bytes)
        except EngineBroken as error:
            self._post(partial(self.give_up, engine, str(error)))
        else:
            self._post(partial(self._on_paused, engine, memory))

    def _on_paused(self, engine: Engine, memory: int) -> None:
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
            self._events.on_rested(self)

    async def _end(self, engine: Engine, grace_s: float) -> None:
        await self._discard(engine, grace_s)
        self._post(self._on_ended)

    def _on_ended(self) -> None:
        self._stopping = False
        self._forget_engine()
        self.state = EngineState.COLD
        self._events.on_rested(self)

    def _new_engine(self) -> Engine:
        engine = self._dependencies.make()
        self._engines.append(engine)
        return engine

    def _forget_engine(self) -> None:
        """Reset what belongs to the engine that ran."""
        self._unwatch()
        self._engine = self.address = None
        self.suspected = self.unverified = False
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
            _logger.critical("%s: an engine could not be ended: %s", self._spec.id, error)
        # Not if this is cancelled: `dispose` waits for the stop, which goes on.
        if engine in self._engines:
            self._engines.remove(engine)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work beside the actor, until `dispose` or `withdraw`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
