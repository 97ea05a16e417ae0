"""The single writer of the state of one model's engines.

Callers post what they want to the actor's inbox, and one task handles it, one message after another. After
each change the actor asks the pure functions of `scheduling`, `scaling` and `idle_policy` what to do, and
does it. Slow work (waking, watching, stopping, dumping) runs beside it in tasks that post their outcome.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from coldstart.keepalive import KeepAlivePolicy
from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.errors import EngineError, EngineUnavailable, HostClosing, UnsupportedTier
from engines.lifecycle.engine import Engine
from engines.lifecycle.snapshots import EngineSnapshots
from engines.policy import HostPolicy
from engines.pool import scaling
from engines.pool.adapter_failures import AdapterFailurePolicy
from engines.pool.decisions import AddReplica, Grant, Resume, Waiter
from engines.pool.futures import fail
from engines.pool.idle_policy import IdleTimer
from engines.pool.memory_budget import MemoryBudget, Victim
from engines.pool.memory_claim import Footprint
from engines.pool.replica import Replica, ReplicaDependencies
from engines.pool.scheduling import Routes, plan_grants
from engines.pool.snapshot_keeper import SnapshotKeeper
from engines.pool.status_summary import expected_start_s, most_awake, summary, tier_of
from engines.spec import ModelSpec
from engines.status import EngineLease, EngineState, EngineStatus, Wake, WakeObserver

_KEPT_WAKES = 20
_logger = logging.getLogger("torpor.engine")

LeaseFuture = asyncio.Future[EngineLease | None]


@dataclass(slots=True)
class StartFailures:
    """Consecutive failed starts, and when the next start may begin. ``last``: why no engine runs."""

    policy: HostPolicy
    count: int = 0
    last: str | None = None
    retry_at: float = 0.0

    def add(self, delay_s: float) -> None:
        """Count a failure, after which no start begins for so many seconds."""
        self.count += 1
        self.retry_at = time.monotonic() + delay_s

    def backoff_s(self, *, after_crash: bool = False) -> float:
        """How long to wait after one more failure. The first crash of an engine that ran is free."""
        return self.policy.backoff_after_s(self.count - after_crash)

    def wait_s(self) -> float:
        """Seconds until a start may begin; not positive if it may begin now."""
        return self.retry_at - time.monotonic()

    def clear(self) -> None:
        """Start again without a delay."""
        self.count, self.last, self.retry_at = 0, None, 0.0


class EngineActor:
    """Owns the engines of one model. `run` is its task; the other public methods may be called by any task.

    It has more attributes and methods than other classes because it is the one place where the state of a
    model's engines changes: callers' requests, the replicas' events, and what the scheduler has decided meet
    here.
    """

    def __init__(
        self,
        spec: ModelSpec,
        make: Callable[[], Engine],
        policy: HostPolicy,
        *,
        budget: MemoryBudget,
        keep_alive: KeepAlivePolicy,
        snapshots: EngineSnapshots | None = None,
        makes_snapshots: bool = True,
        on_awake: Callable[[int], None] = lambda _: None,
        observers: Sequence[WakeObserver] = (),
    ) -> None:
        self.spec = spec
        self.awake = 0  # engines that requests may be sent to
        self._on_awake = on_awake
        self._observers = observers
        self._budget = budget
        self._footprint = Footprint(spec)
        self._inbox: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        self._replicas: list[Replica] = []
        self._numbers = 0
        self._waiters: dict[Waiter, LeaseFuture] = {}  # in the order of arrival
        self._queued = 0  # requests that wait for their turn at the model, and will ask for a lease then
        self._sleepers: list[tuple[SleepTier, asyncio.Future[EngineStatus]]] = []
        self._put_to_sleep = False  # by a command, and no request has come since
        self._cold_next = False  # the next start is to be a cold one
        self._closing = False
        self._failures = StartFailures(policy)
        self._retry: asyncio.TimerHandle | None = None
        self._wakes: deque[Wake] = deque(maxlen=_KEPT_WAKES)
        self._wake_began = 0.0
        self._routes = Routes()
        self.adapter_events = AdapterFailurePolicy(self)
        self._dependencies = ReplicaDependencies(
            spec, make, policy, budget, self._post, self, self._footprint
        )
        self._keeper: SnapshotKeeper | None = None
        if snapshots is not None and spec.snapshot:
            self._keeper = SnapshotKeeper(
                self._dependencies, snapshots, lambda: self._replicas, makes=makes_snapshots
            )
        self._idle = IdleTimer(spec, keep_alive, lambda: self._post(self.settle))

    # -- what callers may do ------------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        """The engines as they are now."""
        state = most_awake(self._replicas)
        if not self._replicas and self._failures.last is not None:
            state = EngineState.FAILED
        has_snapshot = self._can_restore() and not self._cold_next
        tier = tier_of(state, self._replicas, has_snapshot=has_snapshot)
        counts = self.adapter_events.counts
        return summary(self.spec.id, self._replicas, state, tier, self._failures.last, self._wakes, counts)

    def expected_start_s(self) -> float:
        """How long it probably takes until an engine is awake, seconds."""
        waking = any(replica.waking for replica in self._replicas)
        return expected_start_s(self._wakes, self._wake_began if waking else None)

    def ask(self, *, lease: bool, prefix: int | None = None, adapter: Adapter | None = None) -> LeaseFuture:
        """Ask for an engine that is awake, and for a lease on it if ``lease``.

        The future fails with `EngineUnavailable`, `HostClosing` or `AdapterUnfit`; cancel it to stop waiting.
        ``prefix``: requests whose conversation begins alike go to the same replica if it is free.
        """
        result: LeaseFuture = asyncio.get_running_loop().create_future()
        arrived_at = time.monotonic()
        self._post(lambda: self._on_ask(result, lease, prefix, adapter, arrived_at))
        return result

    def expect(self, queued: int) -> None:
        """Note how many requests wait for their turn at the model: they will ask for an engine then."""
        self._post(lambda: self._on_queued(queued))

    def give_back(self, lease: EngineLease) -> None:
        """End a lease."""
        self._post(lambda: self._on_given_back(lease))

    def suspect(self, lease: EngineLease) -> None:
        """Check the health of an engine that a request saw fail; it is not leased until it has answered."""
        self._post(lambda: self._on_suspected(lease))

    def sleep(self, tier: SleepTier) -> asyncio.Future[EngineStatus]:
        """Let the running requests end, then put every engine to sleep. May fail with `UnsupportedTier`."""
        result: asyncio.Future[EngineStatus] = asyncio.get_running_loop().create_future()
        self._post(lambda: self._on_sleep(tier, result))
        return result

    def snapshot(self) -> asyncio.Future[EngineStatus]:
        """Take a new snapshot. May fail with `UnsupportedTier`, `SnapshotFailed`."""
        result: asyncio.Future[EngineStatus] = asyncio.get_running_loop().create_future()
        self._post(lambda: self._on_snapshot(result))
        return result

    def clear_adapter_failures(self, digest: str) -> None:
        """Forget the failures of an adapter that was examined again."""
        self._post(lambda: self.adapter_events.clear(digest))

    def delete_adapter(self, digest: str) -> None:
        """Unload a deleted adapter from every engine, once no request uses it there."""
        self._post(lambda: self._on_adapter_deleted(digest))

    def victims(self) -> list[Victim]:
        """The engines that may be put to sleep if memory is short."""
        return [
            Victim(replica.idle_since, replica.claim.reservation, partial(self._post, replica.leave))
            for replica in scaling.evictable(self._replicas, self.spec.min_hot)
            if replica.claim.reservation is not None
        ]

    def kept_bytes(self) -> int:
        """Bytes of the engines that are always to be hot."""
        return 0 if self._put_to_sleep else scaling.kept_bytes(self._replicas, self.spec.min_hot)

    def close(self) -> None:
        """End the engines, and then `run`."""
        self._post(self._on_close)

    def _post(self, handle: Callable[[], None]) -> None:
        self._inbox.put_nowait(handle)

    async def run(self) -> None:
        """Handle what is posted until `close`."""
        try:
            if self._keeper is not None:
                self._keeper.begin()
            self.settle()
            while not self._closing:
                (await self._inbox.get())()
                self._report_awake()
        finally:
            self._closing = True
            await self._shut_down()

    async def _shut_down(self) -> None:
        while not self._inbox.empty():
            self._inbox.get_nowait()()
        for result in self._waiters.values():
            fail(result, HostClosing())
        for _, slept in self._sleepers:
            fail(slept, HostClosing())
        self._idle.cancel()
        if self._keeper is not None:
            await self._keeper.close()
        await asyncio.gather(*(replica.dispose() for replica in self._replicas))
        self._replicas.clear()

    def _report_awake(self) -> None:
        awake = sum(replica.grantable for replica in self._replicas)
        if awake != self.awake:
            self.awake = awake
            self._on_awake(awake)

    def _on_close(self) -> None:
        self._closing = True

    def _on_ask(
        self, result: LeaseFuture, lease: bool, prefix: int | None, adapter: Adapter | None, arrived_at: float
    ) -> None:
        if self._closing:
            fail(result, HostClosing())
            return
        if (refusal := self.adapter_events.refusal(adapter)) is not None:
            fail(result, refusal)
            return
        self._idle.on_request()
        self._put_to_sleep = False
        if not self._replicas and (wait_s := self._failures.wait_s()) > 0:
            fail(result, self._unavailable(wait_s))
            return
        awake = any(replica.grantable or replica.suspected for replica in self._replicas)
        waiter = Waiter(lease, prefix, adapter, SleepTier.HOT if awake else SleepTier.COLD, arrived_at)
        self._waiters[waiter] = result
        self._serve_waiters()
        if waiter in self._waiters:
            result.add_done_callback(lambda _: self._post(lambda: self._forget_waiter(waiter)))
            self._wake_one()
        self._wake_more()

    def _on_queued(self, queued: int) -> None:
        self._queued = queued
        if queued and not self._closing:
            self._wake_more()

    def _on_given_back(self, lease: EngineLease) -> None:
        for replica in self._replicas:
            replica.give_back(lease)
        self.settle()
        self._withdraw()

    def _on_suspected(self, lease: EngineLease) -> None:
        for replica in self._replicas:
            if replica.serves(lease):
                replica.adapters.suspect(lease)
                replica.suspect()

    # -- serving ------------------------------------------------------------------------------------------

    def _serve_waiters(self) -> None:
        """Carry out the grants and loads that are possible now."""
        if not any(replica.grantable for replica in self._replicas):
            return
        for waiter, result in list(self._waiters.items()):
            if result.done():
                del self._waiters[waiter]
        plan = plan_grants(self._waiters, self._replicas, self.spec.capacity, self._routes)
        for decision in plan:
            replica = self._replica(decision.replica)
            if isinstance(decision, Grant):
                self._grant(decision, replica)
            else:
                replica.adapters.load(decision.adapter)

    def _grant(self, grant: Grant, replica: Replica) -> None:
        waiter = grant.waiter
        result = self._waiters.pop(waiter)
        if grant.prefix is not None:
            self._routes.remember(grant.prefix, replica.number)
        if not waiter.wants_lease:
            result.set_result(None)
            return
        hot = waiter.tier is SleepTier.HOT and replica.awake_since <= waiter.arrived_at
        tier = SleepTier.HOT if hot else replica.source
        waited_s = 0.0 if hot else time.monotonic() - waiter.arrived_at
        result.set_result(replica.lease(tier, waited_s, waiter.adapter))

    def _replica(self, number: int) -> Replica:
        return next(replica for replica in self._replicas if replica.number == number)

    def fail_adapter_waiters(self, digest: str, error: Callable[[str], EngineError]) -> None:
        """Fail the requests that wait for the adapter; ``error`` is given the name that a request uses."""
        for waiter, result in self._waiters.items():
            if waiter.adapter is not None and waiter.adapter.digest == digest:
                fail(result, error(waiter.adapter.name))

    # -- waking -------------------------------------------------------------------------------------------

    def _wake_hot(self) -> None:
        """Wake what `min_hot` asks for, unless a command has put it to sleep."""
        if self._put_to_sleep or not scaling.missing_hot(self._replicas, self.spec.min_hot):
            return
        wait_s = self._failures.wait_s()
        if wait_s <= 0:
            self._wake_one(more=True)
            return
        if self._retry is not None:
            self._retry.cancel()
        loop = asyncio.get_running_loop()
        self._retry = loop.call_later(wait_s, lambda: self._post(self.settle))

    def _wake_one(self, *, more: bool = False) -> None:
        decision = scaling.plan_wake(self._replicas, more=more)
        if decision is not None:
            self._wake_began = time.monotonic()
            self._carry_out([decision])

    def _wake_more(self) -> None:
        """Wake as many engines as the requests take, if a snapshot makes wakes cheap."""
        if self._can_restore() and self._failures.wait_s() <= 0:
            needed = scaling.replicas_needed(self._replicas, self._waiters, self._queued, self.spec)
            self._carry_out(scaling.plan_more(self._replicas, needed, self.spec.max_replicas))

    def _carry_out(self, decisions: Iterable[Resume | AddReplica]) -> None:
        for decision in decisions:
            if isinstance(decision, Resume):
                self._replica(decision.replica).resume()
            else:
                self._add_replica()

    def _add_replica(self) -> None:
        keeper = None if self._cold_next else self._keeper
        snapshot = keeper.candidate() if keeper is not None else None
        self._cold_next = False
        self._numbers += 1
        replica = Replica(self._dependencies, self._numbers)
        self._replicas.append(replica)
        find = keeper.find if keeper is not None and snapshot is not None else None
        measured = snapshot.manifest.memory_bytes if snapshot is not None else 0
        replica.wake(find, self._footprint.restored(measured))

    def _can_restore(self) -> bool:
        return self._keeper is not None and self._keeper.has_snapshot

    # -- events of replicas -------------------------------------------------------------------------------

    def on_woken(self, replica: Replica, wake: Wake) -> None:
        """Record the wake of an engine."""
        self._wakes.append(wake)
        for observer in self._observers:
            observer.on_wake(self.spec.id, wake)

    def on_ready(self, replica: Replica) -> None:
        """Use an engine that has become ready, or put it to sleep if a command waits for that."""
        if self._closing:
            return
        self._failures.last = None
        if not self._sleepers and self._keeper is not None and self._keeper.consider(replica):
            return  # it becomes ready again when it has been dumped
        self._serve_waiters()
        if self._sleepers:
            replica.rest(self._sleepers[-1][0])
        self.settle()

    def on_wake_failed(self, replica: Replica, failure: str) -> None:
        """Back off after a wake that has failed from the snapshot and from the weights."""
        self._lose(replica, failure, self._failures.backoff_s())

    def on_verified(self, replica: Replica, wake: Wake, canary_ms: Mapping[str, float]) -> None:
        """Record that the canary of a restored engine has passed."""
        for index, recorded in enumerate(self._wakes):
            if recorded is wake:
                self._wakes[index] = wake.verified(canary_ms)
        for observer in self._observers:
            observer.on_canary(self.spec.id, wake.source, canary_ms)
        if self._keeper is not None:
            self._keeper.restored(replica)

    def on_not_restored(self, replica: Replica, failure: str) -> None:
        """Judge the snapshot of an engine that could not be restored; the engine is started cold."""
        if self._keeper is not None:
            self._keeper.not_restored(replica, failure)

    def on_broken(self, replica: Replica, failure: str) -> None:
        """Replace an engine that has ended by itself."""
        if self._keeper is not None and self._keeper.judge(replica, failure):
            self._lose(replica, failure, 0.0)  # another at once: cold, or from the snapshot once more
            return
        if replica.uptime_s >= self._dependencies.policy.stable_s:
            self._failures.count = 0
        self._lose(replica, failure, self._failures.backoff_s(after_crash=True))

    def on_rested(self, replica: Replica) -> None:
        """Note that an engine is paused, or has ended as it was to."""
        if replica.state is EngineState.COLD:
            self._failures.count = 0
            self._forget(replica)
        self.settle()

    def on_adapter_mismatches(self, replica: Replica, adapter: Adapter) -> None:
        """Replace an engine in which an adapter's canary has differed again after another load.

        Its running requests may end. It is given no other, so the waiters get another engine.
        """
        _logger.error("engine %d is replaced: an adapter does not answer as it did", replica.number)
        self.adapter_events.on_engine_distrusted(adapter)
        replica.retiring = True
        replica.rest(SleepTier.COLD)
        self.settle()

    def _on_adapter_deleted(self, digest: str) -> None:
        self.adapter_events.clear(digest)
        for replica in self._replicas:
            replica.adapters.delete(digest)

    def _lose(self, replica: Replica, failure: str, delay_s: float) -> None:
        self._forget(replica)
        if self._closing:
            return
        self._failures.add(delay_s)
        _logger.error("%s: failed: %s", self.spec.id, failure.partition("\n")[0])
        if not self._replicas:
            self._failures.last = failure
            if delay_s > 0:
                for result in self._waiters.values():
                    fail(result, self._unavailable(delay_s))
        self.settle()

    def _unavailable(self, wait_s: float) -> EngineUnavailable:
        return EngineUnavailable(f"the engine of model {self.spec.id} failed to start", max(0.1, wait_s))

    # -- going to sleep -----------------------------------------------------------------------------------

    def _on_sleep(self, tier: SleepTier, result: asyncio.Future[EngineStatus]) -> None:
        if self._closing:
            fail(result, HostClosing())
            return
        if tier is SleepTier.SNAPSHOT and not self._can_restore():
            fail(result, UnsupportedTier(f"there is no snapshot of model {self.spec.id}"))
            return
        self._sleepers.append((tier, result))
        self._cold_next = tier is SleepTier.COLD
        self._put_to_sleep = True
        self._withdraw(all_waiting=True)
        if not self._replicas:
            self._failures.clear()
        for replica in self._replicas:
            replica.rest(tier)
        self.settle()

    def settle(self) -> None:
        """Do what has become possible: answer commands to sleep, serve waiters, wake, rest, set timers."""
        if self._closing:
            return
        self._serve_waiters()
        paused = all(replica.state is EngineState.PAUSED for replica in self._replicas)
        if self._sleepers and paused and (not self._replicas or self._sleepers[-1][0] is SleepTier.PAUSED):
            sleepers, self._sleepers = self._sleepers, []
            for _, result in sleepers:
                if not result.done():
                    result.set_result(self.status())
        if any(not result.done() for result in self._waiters.values()):
            self._wake_one()
        elif not self._sleepers:
            self._wake_hot()
            for rest in self._idle.plan(self._replicas, can_leave=self._can_restore()):
                self._replica(rest.replica).rest(rest.tier)
            if self._idle.prewake_due() and not self._replicas:
                self._wake_one()
        self._budget.recheck()

    def _forget_waiter(self, waiter: Waiter) -> None:
        self._waiters.pop(waiter, None)
        self._withdraw()

    def _withdraw(self, *, all_waiting: bool = False) -> None:
        """Withdraw engines that still wait for memory if the requests that needed them have gone."""
        needed = 0
        if not all_waiting:
            hot = 0 if self._put_to_sleep else self.spec.min_hot
            requests = scaling.replicas_needed(self._replicas, self._waiters, self._queued, self.spec)
            needed = max(hot, requests)
        withdrawals = scaling.plan_withdrawals(self._replicas, needed)
        for withdrawal in withdrawals:
            replica = self._replica(withdrawal.replica)
            replica.withdraw()
            self._forget(replica)
        if withdrawals:
            self.settle()

    def _forget(self, replica: Replica) -> None:
        if replica.source is SleepTier.COLD:
            self._footprint.learn(replica.claim.peak_bytes)
        if replica in self._replicas:
            self._replicas.remove(replica)

    def _on_snapshot(self, result: asyncio.Future[EngineStatus]) -> None:
        if self._keeper is not None:
            self._keeper.order(result, self.status)
        else:
            fail(result, UnsupportedTier(f"this host takes no snapshots of model {self.spec.id}"))
