"""The single writer of the state of one model's engines.

Everybody who wants something of the model posts it here, and one task does it, one thing after another. What
takes time (waking, watching, stopping, dumping) runs beside it in tasks that post their outcome.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from coldstart.keepalive import KeepAlivePolicy
from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.errors import EngineUnavailable, HostClosing, UnsupportedTier
from engines.lifecycle.engine import Engine
from engines.lifecycle.snapshots import Snapshots
from engines.policy import HostPolicy
from engines.pool import eviction
from engines.pool.adapter_failures import AdapterDesk
from engines.pool.idle_policy import Idling
from engines.pool.memory_budget import MemoryBudget, Victim
from engines.pool.memory_claim import Footprint
from engines.pool.replica import Parts, Replica
from engines.pool.routing import Router
from engines.pool.snapshot_keeper import Shelf, started_cold
from engines.pool.status_summary import expected_start_s, most_awake, summary, tier_of
from engines.pool.waiting import Waiter, fail, needed, serve
from engines.spec import ModelSpec
from engines.status import EngineLease, EngineState, EngineStatus, Wake

_KEPT_WAKES = 20
_logger = logging.getLogger("torpor.engine")


class EngineActor:
    """Owns the engines of one model. `run` is its task; the other public methods belong to everybody."""

    def __init__(
        self,
        spec: ModelSpec,
        make: Callable[[], Engine],
        policy: HostPolicy,
        *,
        budget: MemoryBudget,
        keep_alive: KeepAlivePolicy,
        snapshots: Snapshots | None = None,
        makes_snapshots: bool = True,
        on_awake: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.spec = spec
        self._parts = Parts(spec, make, policy, budget, self._post, self, Footprint(spec))
        self._policy = policy
        self._inbox: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        self._replicas: list[Replica] = []
        self._numbers = 0
        self._waiters: dict[Waiter, None] = {}  # in the order of their coming
        self.desk = AdapterDesk(self._waiters, self._replicas, self._post, self._settle)
        self._sleepers: list[tuple[SleepTier, asyncio.Future[EngineStatus]]] = []
        self._closing = False
        self._failure: str | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._wakes: deque[Wake] = deque(maxlen=_KEPT_WAKES)
        self._wake_began = 0.0
        self._queued = 0  # requests that wait for their turn, and will ask for a lease when it comes
        self.awake = 0  # engines that requests may be sent to
        self._on_awake = on_awake
        self._router = Router(spec.capacity)
        self._cold_next = False  # somebody asked that the next start be a cold one
        self._told_to_sleep = False  # and nobody has asked for the model since
        usable = snapshots if spec.snapshot else None
        lend = partial(started_cold, self._replicas) if makes_snapshots else None
        self._shelf = Shelf(self._parts, usable, self._replicas, lend) if usable is not None else None
        self._idling = Idling(spec, keep_alive, lambda: self._post(self._settle))

    # -- what callers may do ------------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        """The engines as they are now."""
        state = most_awake(self._replicas)
        if not self._replicas and self._failure is not None:
            state = EngineState.FAILED
        shelved = self._shelf is not None and self._shelf.has_snapshot and not self._cold_next
        tier = tier_of(state, self._replicas, shelved=shelved)
        return summary(
            self.spec.id, self._replicas, state, tier, self._failure, self._wakes, self.desk.counts
        )

    def expected_start_s(self) -> float:
        """How long it probably takes until an engine is awake."""
        waking = any(replica.waking for replica in self._replicas)
        return expected_start_s(self._wakes, self._wake_began if waking else None)

    def ask(
        self, *, lease: bool, prefix: int | None = None, adapter: Adapter | None = None
    ) -> asyncio.Future[EngineLease | None]:
        """Want an engine awake. The future fails with `EngineUnavailable`; cancel it to want no more.

        ``prefix``: of conversations that begin alike, to be sent to the same replica where it is free.
        """
        waiter = Waiter(lease, prefix, adapter)
        self._post(lambda: self._on_ask(waiter))
        return waiter.result

    def expect(self, queued: int) -> None:
        """So many requests wait for their turn, and will ask when it comes."""
        self._post(lambda: self._on_queued(queued))

    def give_back(self, lease: EngineLease) -> None:
        """A lease has ended."""
        self._post(lambda: self._on_given_back(lease))

    def suspect(self, lease: EngineLease) -> None:
        """A request saw the engine fail: nobody gets another lease on it until it is known to be well."""
        self._post(lambda: self._on_suspected(lease))

    def sleep(self, tier: SleepTier) -> asyncio.Future[EngineStatus]:
        """Let the requests end that run, then put every engine to sleep. May fail with `UnsupportedTier`."""
        done: asyncio.Future[EngineStatus] = asyncio.get_running_loop().create_future()
        self._post(lambda: self._on_sleep(tier, done))
        return done

    def snapshot(self) -> asyncio.Future[EngineStatus]:
        """Take a new snapshot. May fail with `UnsupportedTier`, `SnapshotFailed`."""
        done: asyncio.Future[EngineStatus] = asyncio.get_running_loop().create_future()
        self._post(lambda: self._on_snapshot(done))
        return done

    def victims(self) -> list[Victim]:
        """The engines that may be put to sleep when memory is short."""
        return eviction.victims(self._replicas, self.spec.min_hot, self._post)

    def kept_bytes(self) -> int:
        """What the engines have that are always to be hot."""
        return 0 if self._told_to_sleep else eviction.kept_bytes(self._replicas, self.spec.min_hot)

    def close(self) -> None:
        """End the engines and then `run`."""
        self._post(self._on_close)

    def _post(self, handle: Callable[[], None]) -> None:
        self._inbox.put_nowait(handle)

    async def run(self) -> None:
        """Do what is asked until `close`."""
        try:
            if self._shelf is not None:
                self._shelf.begin()
            self._settle()
            while not self._closing:
                (await self._inbox.get())()
                self._tell()
        finally:
            self._closing = True
            await self._shut_down()

    async def _shut_down(self) -> None:
        while not self._inbox.empty():
            self._inbox.get_nowait()()
        for waiter in self._waiters:
            fail(waiter.result, HostClosing())
        for _, sleeper in self._sleepers:
            fail(sleeper, HostClosing())
        self._idling.cancel()
        if self._shelf is not None:
            await self._shelf.close()
        await asyncio.gather(*(replica.dispose() for replica in self._replicas))
        self._replicas.clear()

    def _tell(self) -> None:
        awake = sum(replica.grantable for replica in self._replicas)
        if awake != self.awake:
            self.awake = awake
            self._on_awake(awake)

    def _on_close(self) -> None:
        self._closing = True

    def _on_ask(self, waiter: Waiter) -> None:
        if self._closing or self.desk.refuses(waiter):
            fail(waiter.result, HostClosing())  # unless it was refused
            return
        self._idling.on_request()
        self._told_to_sleep = False
        if not self._replicas and (wait_s := self._retry_at - time.monotonic()) > 0:
            fail(waiter.result, self._unavailable(wait_s))
            return
        if any(replica.grantable or replica.suspected for replica in self._replicas):
            waiter.found = SleepTier.HOT  # awake, and probably well
        self._waiters[waiter] = None
        self._serve_waiters()
        if waiter in self._waiters:
            waiter.result.add_done_callback(lambda _: self._post(lambda: self._forget_waiter(waiter)))
            self._wake_one()
        self._scale()

    def _on_queued(self, queued: int) -> None:
        self._queued = queued
        if queued and not self._closing:
            self._scale()

    def _serve_waiters(self) -> None:
        serve(self._waiters, self._replicas, self._router, self.spec.capacity)

    def _on_given_back(self, lease: EngineLease) -> None:
        for replica in self._replicas:
            replica.give_back(lease)
        self._settle()
        self._withdraw()

    def _on_suspected(self, lease: EngineLease) -> None:
        for replica in self._replicas:
            if replica.serves(lease):
                replica.adapters.suspect(lease)
                replica.suspect()

    # -- waking -------------------------------------------------------------------------------------------

    def _warm(self) -> None:
        """As many engines as are always to be hot, unless somebody put them to sleep."""
        missing = self.spec.min_hot - sum(r.state is not EngineState.DRAINING for r in self._replicas)
        if missing > 0 and not self._told_to_sleep:
            wait_s = self._retry_at - time.monotonic()
            if wait_s <= 0:
                self._wake_one(more=True)
            else:
                if self._retry is not None:
                    self._retry.cancel()
                loop = asyncio.get_running_loop()
                self._retry = loop.call_later(wait_s, lambda: self._post(self._settle))

    def _wake_one(self, *, more: bool = False) -> None:
        """One wake for all who wait, unless one is on its way. ``more``: also where one is awake."""
        if any(replica.waking for replica in self._replicas):
            return
        if not more and any(replica.suspected and not replica.condemned for replica in self._replicas):
            return  # it is being examined: it will be ready, or broken
        paused = next((r for r in self._replicas if r.state is EngineState.PAUSED), None)
        self._wake_began = time.monotonic()
        if paused is not None:
            paused.resume()
        elif more or all(replica.condemned for replica in self._replicas):
            self._add_replica()
        # Else one is on its way to sleep, or is being dumped: it comes back by itself, or tells of its rest.

    def _scale(self) -> None:
        """As many replicas as all that is asked for needs, where the snapshot makes them cheap."""
        awake = sum(replica.waking or replica.grantable for replica in self._replicas)
        cheap = self._shelf is not None and self._shelf.has_snapshot and time.monotonic() >= self._retry_at
        if not awake or not cheap:
            return
        wanted = min(self.spec.max_replicas, needed(self._replicas, self._waiters, self._queued, self.spec))
        for replica in self._replicas:
            if awake < wanted and replica.state is EngineState.PAUSED:
                replica.resume()
                awake += 1
        while awake < wanted and len(self._replicas) < self.spec.max_replicas:
            self._add_replica()
            awake += 1

    def _add_replica(self) -> None:
        shelf = None if self._cold_next else self._shelf
        found = shelf.candidate() if shelf is not None else None
        self._cold_next = False
        self._numbers += 1
        replica = Replica(self._parts, self._numbers)
        self._replicas.append(replica)
        finder = shelf.find if shelf is not None and found is not None else None
        replica.wake(finder, self._parts.footprint.restored(found.manifest.memory_bytes if found else 0))

    def on_ready(self, replica: Replica) -> None:
        """A replica may be used."""
        if self._closing:
            return
        if replica.wakes and (not self._wakes or replica.wakes[-1] is not self._wakes[-1]):
            self._wakes.append(replica.wakes[-1])
        self._failure = None
        self._serve_waiters()
        if self._sleepers:
            replica.rest(self._sleepers[-1][0])
        elif self._shelf is not None:
            self._shelf.consider(replica)
        self._settle()

    def on_wake_failed(self, replica: Replica, failure: str) -> None:
        """A replica could not be woken, not even from nothing."""
        self._lose(replica, failure, self._policy.backoff_after_s(self._failures))

    def on_proven(self, replica: Replica) -> None:
        """A restored replica has shown that it answers as it did."""
        if self._shelf is not None:
            self._shelf.restored(replica)

    def on_not_restored(self, replica: Replica, failure: str) -> None:
        """A replica could not be restored, and is started from nothing."""
        if self._shelf is not None:
            self._shelf.not_restored(replica, failure)

    def on_broken(self, replica: Replica, failure: str) -> None:
        """A replica has ended by itself."""
        if self._shelf is not None and self._shelf.judge(replica, failure):
            self._lose(replica, failure, 0.0)  # another one at once: cold, or once more of the snapshot
            return
        if replica.uptime_s >= self._policy.stable_s:
            self._failures = 0
        self._lose(replica, failure, self._policy.backoff_after_s(self._failures - 1))

    def _lose(self, replica: Replica, failure: str, delay_s: float) -> None:
        self._forget(replica)
        if self._closing:
            return
        self._failures += 1
        self._retry_at = time.monotonic() + delay_s
        _logger.error("%s: failed: %s", self.spec.id, failure.partition("\n")[0])
        if not self._replicas:
            self._failure = failure
            if delay_s > 0:
                for waiter in self._waiters:
                    fail(waiter.result, self._unavailable(delay_s))
        self._settle()

    def _unavailable(self, wait_s: float) -> EngineUnavailable:
        return EngineUnavailable(f"the engine of model {self.spec.id} failed to start", max(0.1, wait_s))

    def on_rested(self, replica: Replica) -> None:
        """A replica is paused, or has ended as it was told to."""
        if replica.state is EngineState.COLD:
            self._failures = 0
            self._forget(replica)
        self._settle()

    def _on_sleep(self, tier: SleepTier, done: asyncio.Future[EngineStatus]) -> None:
        if self._closing:
            fail(done, HostClosing())
            return
        if tier is SleepTier.SNAPSHOT and (self._shelf is None or not self._shelf.has_snapshot):
            fail(done, UnsupportedTier(f"there is no snapshot of model {self.spec.id}"))
            return
        self._sleepers.append((tier, done))
        self._cold_next = tier is SleepTier.COLD
        self._told_to_sleep = True
        self._withdraw(everybody=True)
        if not self._replicas:
            self._failures, self._failure, self._retry_at = 0, None, 0.0
        for replica in self._replicas:
            replica.rest(tier)
        self._settle()

    def _settle(self) -> None:
        """After every change: who asked for sleep is told, who waits is served, timers are set."""
        if self._closing:
            return
        self._serve_waiters()
        paused = all(replica.state is EngineState.PAUSED for replica in self._replicas)
        if self._sleepers and paused and (not self._replicas or self._sleepers[-1][0] is SleepTier.PAUSED):
            sleepers, self._sleepers = self._sleepers, []
            for _, sleeper in sleepers:
                if not sleeper.done():
                    sleeper.set_result(self.status())
        if any(not waiter.result.done() for waiter in self._waiters):
            self._wake_one()
        elif not self._sleepers:
            self._warm()
            can_leave = self._shelf is not None and self._shelf.has_snapshot
            self._idling.settle(self._replicas, can_leave=can_leave)
            if self._idling.prewake_due() and not self._replicas:
                self._wake_one()
        self._parts.budget.recheck()

    def _forget_waiter(self, waiter: Waiter) -> None:
        self._waiters.pop(waiter, None)
        self._withdraw()

    def _withdraw(self, *, everybody: bool = False) -> None:
        """Those who wanted them have gone: engines that still wait for memory give up their place."""
        least = 0 if self._told_to_sleep else self.spec.min_hot
        wanted = max(least, needed(self._replicas, self._waiters, self._queued, self.spec))
        superfluous = eviction.superfluous(self._replicas, 0 if everybody else wanted)
        for replica in superfluous:
            replica.withdraw()
            self._forget(replica)
        if superfluous:
            self._settle()

    def _forget(self, replica: Replica) -> None:
        if replica.source is SleepTier.COLD:
            self._parts.footprint.learn(replica.claim.peak_bytes)
        if replica in self._replicas:
            self._replicas.remove(replica)

    def _on_snapshot(self, done: asyncio.Future[EngineStatus]) -> None:
        if self._shelf is not None:
            self._shelf.order(done, self.status)
        else:
            fail(done, UnsupportedTier(f"this host takes no snapshots of model {self.spec.id}"))
