"""What the scheduler decides, without an engine: examples, and properties under random histories.

`Simulation` carries the decisions out on states alone, as `engines.pool.actor` does on engines.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coldstart.keepalive import KeepAlive
from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.pool import scaling
from engines.pool.adapter_slots import AdapterSlots, Stage
from engines.pool.decisions import AddReplica, Grant, LoadAdapter, Rest, Resume, Waiter
from engines.pool.idle_policy import plan_sleep
from engines.pool.memory_budget import Admit, Evict, MemoryBudget, MemoryReservation, Victim, plan_memory
from engines.pool.memory_claim import MemoryClaim
from engines.pool.replica_state import ReplicaState
from engines.pool.scheduling import Routes, plan_grants
from engines.spec import EngineAddress, LoraSettings, ModelSpec
from engines.status import EngineLease, EngineState

ALWAYS_AWAKE = KeepAlive(0.0, 1e9, "fixed")
PROPERTY = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def adapter(number: int) -> Adapter:
    return Adapter(f"ft:{number}", f"{number:064x}", Path("/nowhere"), 8, canary=b"recorded")


def state_of(
    number: int = 1, state: EngineState = EngineState.READY, leases: int = 0, lora: LoraSettings | None = None
) -> ReplicaState:
    """A replica without an engine, holding memory, idle since the time 0."""
    budget = MemoryBudget(1, list)
    replica = ReplicaState(number, MemoryClaim(budget, 0), AdapterSlots(lora or LoraSettings()))
    replica.state = state
    replica.idle_since = 0.0
    replica.claim.reservation = MemoryReservation(1, lambda _: None)
    for _ in range(leases):
        replica.leases.add(lease(replica))
    return replica


def lease(replica: ReplicaState, of: Adapter | None = None) -> EngineLease:
    address = EngineAddress(url="http://127.0.0.1:1")
    loaded = None if of is None else replica.slots.get(of.digest)
    name = None if loaded is None else loaded.name
    return EngineLease("model", address, SleepTier.HOT, 0.0, False, replica.number, of, name)


def granted(decisions: Sequence[Grant | LoadAdapter]) -> list[tuple[Waiter, int]]:
    return [(grant.waiter, grant.replica) for grant in decisions if isinstance(grant, Grant)]


# -- examples ----------------------------------------------------------------------------------------------


def test_waiters_are_served_in_order_by_the_least_busy_replica() -> None:
    first, second, third = Waiter(True), Waiter(True), Waiter(True)
    replicas = [state_of(1, leases=2), state_of(2, leases=1), state_of(3, EngineState.PAUSED)]
    plan = plan_grants([first, second, third], replicas, 8, {})
    assert granted(plan) == [(first, 2), (second, 1), (third, 2)]


def test_a_full_replica_is_given_no_more_while_another_wakes() -> None:
    waiters = [Waiter(True), Waiter(True), Waiter(False)]
    replicas = [state_of(1, leases=1), state_of(2, EngineState.RESTORING)]
    assert granted(plan_grants(waiters, replicas, 2, {})) == [(waiters[0], 1), (waiters[2], 1)]
    alone = replicas[:1]
    assert granted(plan_grants(waiters, alone, 2, {})) == [(waiter, 1) for waiter in waiters]


def test_a_prefix_returns_to_its_replica_if_that_has_a_free_slot() -> None:
    replicas = [state_of(1), state_of(2, leases=1)]
    (grant,) = plan_grants([Waiter(True, prefix=7)], replicas, 2, {7: 2})
    assert isinstance(grant, Grant)
    assert (grant.replica, grant.prefix) == (2, 7)
    (grant,) = plan_grants([Waiter(True, prefix=7)], replicas, 1, {7: 2})
    assert isinstance(grant, Grant)
    assert grant.replica == 1


def test_routes_forget_the_prefix_that_was_used_least_recently() -> None:
    routes = Routes()
    for prefix in range(1024):
        routes.remember(prefix, 1)
    routes.remember(0, 2)
    routes.remember(5000, 1)
    assert routes[0] == 2
    assert 1 not in routes


@pytest.mark.parametrize("state", [state for state in EngineState if state is not EngineState.READY])
def test_only_a_ready_replica_is_given(state: EngineState) -> None:
    assert plan_grants([Waiter(True)], [state_of(1, state)], 8, {}) == []


def test_a_suspected_replica_is_not_given() -> None:
    replica = state_of()
    replica.suspected = True
    assert plan_grants([Waiter(True), Waiter(False)], [replica], 8, {}) == []


def test_one_load_is_begun_for_all_who_wait_for_an_adapter() -> None:
    replicas = [state_of(1, leases=1), state_of(2)]
    waiters = [Waiter(True, adapter=adapter(1)) for _ in range(3)]
    assert plan_grants(waiters, replicas, 8, {}) == [LoadAdapter(2, adapter(1))]


def test_an_adapter_that_is_being_verified_is_given_only_as_unverified() -> None:
    replica = state_of()
    loaded, _ = replica.slots.load(adapter(1))
    waiter = Waiter(True, adapter=adapter(1))
    assert plan_grants([waiter], [replica], 8, {}) == []
    loaded.stage = Stage.UNVERIFIED
    assert granted(plan_grants([waiter], [replica], 8, {})) == [(waiter, 1)]
    loaded.suspected = True
    assert plan_grants([waiter], [replica], 8, {}) == []


def test_who_finds_no_slot_claims_the_one_in_use_for_the_longest() -> None:
    """A later request for that adapter waits, one for the other adapter does not."""
    replica = state_of(lora=LoraSettings(slots=2, cpu_slots=2))
    for number, since in ((1, 10.0), (2, 20.0)):
        loaded, _ = replica.slots.load(adapter(number))
        loaded.stage = Stage.VERIFIED
        replica.slots.take(loaded)
        loaded.in_use_since = since
    new, first, second = (Waiter(True, adapter=adapter(number)) for number in (3, 1, 2))
    assert granted(plan_grants([new, second, first], [replica], 8, {})) == [(second, 1)]
    assert granted(plan_grants([first, new, second], [replica], 8, {})) == [(first, 1), (second, 1)]


def test_planning_changes_no_state() -> None:
    replica = state_of(lora=LoraSettings(slots=1, cpu_slots=1))
    loaded, _ = replica.slots.load(adapter(1))
    loaded.stage = Stage.VERIFIED
    plan = plan_grants([Waiter(True, adapter=adapter(2))], [replica], 8, {})
    assert plan == [LoadAdapter(1, adapter(2))]
    assert list(replica.slots) == [loaded]
    plan_grants([Waiter(True, adapter=adapter(1))], [replica], 8, {})
    assert (loaded.leases, replica.leases) == (0, set())


@pytest.mark.parametrize(
    ("states", "more", "decision"),
    [
        ([], False, AddReplica()),
        ([EngineState.STARTING], False, None),
        ([EngineState.RESTORING], True, None),
        ([EngineState.PAUSED], False, Resume(1)),
        ([EngineState.READY], False, None),
        ([EngineState.READY], True, AddReplica()),
        ([EngineState.DRAINING], False, None),
        ([EngineState.READY, EngineState.PAUSED], True, Resume(2)),
    ],
)
def test_one_wake_serves_all(
    states: list[EngineState], more: bool, decision: Resume | AddReplica | None
) -> None:
    replicas = [state_of(number, state) for number, state in enumerate(states, 1)]
    assert scaling.plan_wake(replicas, more=more) == decision


def test_a_replica_that_is_retiring_is_replaced() -> None:
    replica = state_of(1, EngineState.DRAINING, leases=1)
    replica.retiring = True
    assert scaling.plan_wake([replica]) == AddReplica()


@pytest.mark.parametrize(
    ("states", "needed", "most", "decisions"),
    [
        ([], 3, 3, []),
        ([EngineState.READY], 1, 3, []),
        ([EngineState.READY], 3, 2, [AddReplica()]),
        ([EngineState.READY, EngineState.PAUSED], 3, 3, [Resume(2), AddReplica()]),
        ([EngineState.READY, EngineState.DRAINING], 2, 2, []),
        ([EngineState.READY, EngineState.RESTORING], 2, 3, []),
    ],
)
def test_more_replicas_are_woken_for_more_requests(
    states: list[EngineState], needed: int, most: int, decisions: list[Resume | AddReplica]
) -> None:
    replicas = [state_of(number, state) for number, state in enumerate(states, 1)]
    assert scaling.plan_more(replicas, needed, most) == decisions


def test_an_idle_engine_is_paused_then_leaves() -> None:
    spec = ModelSpec(id="model", idle_pause_s=10, idle_snapshot_s=60)
    replica = state_of()

    def plan(now: float) -> tuple[tuple[Rest, ...], float | None]:
        plan = plan_sleep(
            [replica], spec, ALWAYS_AWAKE, idle_since=0, prewake_at=None, can_leave=True, now=now
        )
        return plan.rests, plan.next_at

    assert plan(9.0) == ((), 10)
    assert plan(10.0) == ((Rest(1, SleepTier.PAUSED),), 60)
    assert plan(60.0) == ((Rest(1, SleepTier.SNAPSHOT),), None)
    replica.leases.add(lease(replica))
    assert plan(1000.0) == ((), None)


def test_an_engine_whose_model_is_expected_back_leaves_and_is_woken_before() -> None:
    spec = ModelSpec(id="model", idle_pause_s=10)
    windows = KeepAlive(prewake_after_s=600, keep_alive_s=60, source="histogram")
    plan = plan_sleep([state_of()], spec, windows, idle_since=0, prewake_at=None, can_leave=True, now=10.0)
    assert plan.rests == (Rest(1, SleepTier.SNAPSHOT),)
    assert plan.prewake_at == plan.next_at == 600


def test_engines_that_are_always_hot_do_not_rest_and_are_not_evicted() -> None:
    spec = ModelSpec(id="model", min_hot=2, max_replicas=3, idle_pause_s=1, idle_snapshot_s=2)
    replicas = [state_of(number) for number in (1, 2, 3)]
    plan = plan_sleep(replicas, spec, ALWAYS_AWAKE, idle_since=0, prewake_at=None, can_leave=True, now=1e6)
    assert plan.rests == (Rest(1, SleepTier.SNAPSHOT),)
    assert scaling.evictable(replicas, 2) == replicas[:1]


# -- properties --------------------------------------------------------------------------------------------


class Simulation:
    """A model whose engines do at once what is decided, and whose loads and wakes end when a test says so."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.now = 0.0
        self.replicas: list[ReplicaState] = []
        self.waiters: dict[Waiter, None] = {}
        self.served: list[Waiter] = []
        self.routes = Routes()
        self._numbers = itertools.count(1)
        self._clock = itertools.count()
        self._granted: dict[EngineLease, int] = {}
        self._last_step = 0

    def replica(self, number: int) -> ReplicaState:
        return next(replica for replica in self.replicas if replica.number == number)

    def ask(self, waiter: Waiter) -> None:
        self.waiters[waiter] = None
        self.settle()
        needed = scaling.replicas_needed(self.replicas, self.waiters, 0, self.spec)
        for decision in scaling.plan_more(self.replicas, needed, self.spec.max_replicas):
            self._wake(decision)

    def settle(self) -> None:
        """As `EngineActor.settle`."""
        for decision in plan_grants(self.waiters, self.replicas, self.spec.capacity, self.routes):
            replica = self.replica(decision.replica)
            if isinstance(decision, LoadAdapter):
                assert replica.state is EngineState.READY
                assert replica.slots.get(decision.adapter.digest) is None
                assert replica.slots.has_room()
                loaded, _ = replica.slots.load(decision.adapter)
                loaded.in_use_since = next(self._clock)
            else:
                self._grant(decision, replica)
        if self.waiters:
            wake = scaling.plan_wake(self.replicas)
            if wake is not None:
                self._wake(wake)
        else:
            self._rest()

    def _grant(self, grant: Grant, replica: ReplicaState) -> None:
        waiter = grant.waiter
        del self.waiters[waiter]
        self.served.append(waiter)
        assert replica.grantable, "a replica is given that is not awake, or not healthy"
        if grant.prefix is not None:
            self.routes.remember(grant.prefix, replica.number)
        if not waiter.wants_lease:
            return
        if any(other.waking for other in self.replicas):
            assert len(replica.leases) < self.spec.capacity, "more leases than slots while another wakes"
        if waiter.adapter is not None:
            loaded = replica.slots.get(waiter.adapter.digest)
            assert loaded is not None, "an adapter is given that is not loaded"
            assert loaded.usable
            begins = not loaded.in_use
            replica.slots.take(loaded)
            if begins:
                loaded.in_use_since = next(self._clock)
        granted = lease(replica, waiter.adapter)
        self._granted[granted] = next(self._clock)
        replica.leases.add(granted)

    def _wake(self, decision: Resume | AddReplica) -> None:
        if isinstance(decision, Resume):
            replica = self.replica(decision.replica)
            assert replica.state is EngineState.PAUSED
        else:
            replica = state_of(next(self._numbers), lora=self.spec.lora)
            self.replicas.append(replica)
        replica.state = EngineState.RESTORING

    def _rest(self) -> None:
        idle_since = None if any(replica.leases for replica in self.replicas) else self.now
        plan = plan_sleep(
            self.replicas,
            self.spec,
            KeepAlive(0.0, 60.0, "fixed"),
            idle_since=idle_since,
            prewake_at=None,
            can_leave=True,
            now=self.now,
        )
        for rest in plan.rests:
            self.sleep(self.replica(rest.replica), rest.tier)

    def sleep(self, replica: ReplicaState, tier: SleepTier) -> None:
        assert not replica.leases, "an engine in use is put to sleep"
        assert not replica.slots.changing, "an engine is put to sleep while an adapter changes"
        replica.slots.clear()
        if tier is SleepTier.PAUSED:
            assert replica.state is EngineState.READY
            replica.state = EngineState.PAUSED
        else:
            self.replicas.remove(replica)

    def leases(self, replica: ReplicaState) -> list[EngineLease]:
        """The oldest first."""
        return sorted(replica.leases, key=self._granted.__getitem__)

    # -- what engines and clients do

    def finish(self, replica: ReplicaState, ended: EngineLease) -> None:
        replica.leases.discard(ended)
        loaded = replica.slots.named(ended.internal_name)
        if loaded is not None:
            replica.slots.give_back(loaded)
        if not replica.busy:
            replica.idle_since = self.now
        self.settle()

    def finish_load(self, replica: ReplicaState, *, rejected: bool = False) -> None:
        for loaded in list(replica.slots):
            if loaded.stage is Stage.LOADING:
                if rejected:
                    replica.slots.remove(loaded)
                    self.waiters = {
                        waiter: None
                        for waiter in self.waiters
                        if waiter.adapter is None or waiter.adapter.digest != loaded.adapter.digest
                    }
                else:
                    loaded.stage = Stage.VERIFIED
        self.settle()

    def finish_wake(self, replica: ReplicaState, *, failed: bool = False) -> None:
        if failed:
            self.replicas.remove(replica)
        else:
            replica.state = EngineState.READY
            replica.idle_since = self.now
        self.settle()

    def step(self) -> None:
        """Wakes and loads end, and the leases that have lasted for a step and a part of one.

        So those that are given in two steps overlap, and an adapter may be in use without a break.
        """
        given = [
            (replica, lease)
            for replica in self.replicas
            for lease in self.leases(replica)
            if self._granted[lease] < self._last_step
        ]
        self._last_step = next(self._clock)
        for replica in list(self.replicas):
            if replica.waking:
                self.finish_wake(replica)
            elif replica.state is EngineState.READY:
                self.finish_load(replica)
        for replica, ended in given:
            self.finish(replica, ended)


class Scheduling(RuleBasedStateMachine):
    """Requests, ends, failures and idle times in any order."""

    simulation: Simulation
    requests = 0

    @initialize(
        capacity=st.integers(1, 3),
        replicas=st.integers(1, 3),
        min_hot=st.integers(0, 1),
        slots=st.integers(1, 2),
        spare=st.integers(0, 2),
    )
    def begin(self, capacity: int, replicas: int, min_hot: int, slots: int, spare: int) -> None:
        lora = LoraSettings(slots=slots, cpu_slots=slots + spare)
        self.simulation = Simulation(
            ModelSpec(
                id="model",
                max_running=capacity,
                max_replicas=replicas,
                min_hot=min_hot,
                lora=lora,
                idle_pause_s=10,
            )
        )

    @rule(
        number=st.none() | st.integers(1, 5),
        prefix=st.none() | st.integers(0, 2),
        lease=st.sampled_from([True, True, True, False]),
    )
    def ask(self, number: int | None, prefix: int | None, lease: bool) -> None:
        of = adapter(number) if number is not None and lease else None
        self.requests += 1
        self.simulation.ask(Waiter(lease, prefix, of))

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        busy = [replica for replica in self.simulation.replicas if replica.leases]
        if busy:
            replica = data.draw(st.sampled_from(busy))
            self.simulation.finish(replica, data.draw(st.sampled_from(self.simulation.leases(replica))))

    @rule(data=st.data(), rejected=st.booleans())
    def finish_load(self, data: st.DataObject, rejected: bool) -> None:
        ready = [replica for replica in self.simulation.replicas if replica.state is EngineState.READY]
        if ready:
            self.simulation.finish_load(data.draw(st.sampled_from(ready)), rejected=rejected)

    @rule(data=st.data(), failed=st.booleans())
    def finish_wake(self, data: st.DataObject, failed: bool) -> None:
        waking = [replica for replica in self.simulation.replicas if replica.waking]
        if waking:
            self.simulation.finish_wake(data.draw(st.sampled_from(waking)), failed=failed)

    @rule(seconds=st.sampled_from([1, 10, 60, 600]))
    def wait(self, seconds: int) -> None:
        self.simulation.now += seconds
        self.simulation.settle()

    @rule()
    def memory_is_short(self) -> None:
        for replica in scaling.evictable(self.simulation.replicas, self.simulation.spec.min_hot)[:1]:
            self.simulation.sleep(replica, SleepTier.SNAPSHOT)
        self.simulation.settle()

    @precondition(lambda self: self.requests)
    @rule()
    def everything_ends(self) -> None:
        """Without new requests all that wait are served."""
        for _ in range(8 * self.requests + 8):
            self.simulation.step()
        assert not self.simulation.waiters, "a request waits for ever"

    @invariant()
    def limits_hold(self) -> None:
        simulation = getattr(self, "simulation", None)
        if simulation is None:
            return
        lora = simulation.spec.lora
        assert lora is not None
        assert len(simulation.replicas) <= simulation.spec.max_replicas
        for replica in simulation.replicas:
            assert len(replica.slots.in_use) <= lora.slots
            assert len(replica.slots) <= lora.cpu_slots
        assert len(set(simulation.served)) == len(simulation.served)

    @invariant()
    def nobody_overtakes(self) -> None:
        """Requests without an adapter are served in the order of their arrival."""
        simulation = getattr(self, "simulation", None)
        if simulation is None:
            return
        plain = [waiter for waiter in simulation.served if waiter.adapter is None and waiter.wants_lease]
        assert plain == sorted(plain, key=lambda waiter: waiter.arrived_at)


TestScheduling = Scheduling.TestCase
TestScheduling.settings = PROPERTY


@settings(PROPERTY, max_examples=200)
@given(
    slots=st.integers(1, 3),
    replicas=st.integers(1, 2),
    capacity=st.integers(1, 4),
    before=st.lists(st.none() | st.integers(1, 6), max_size=12),
    number=st.none() | st.integers(1, 6),
    later=st.lists(st.none() | st.integers(1, 6), min_size=1, max_size=6),
)
def test_no_waiter_starves(
    slots: int,
    replicas: int,
    capacity: int,
    before: list[int | None],
    number: int | None,
    later: list[int | None],
) -> None:
    """However many requests for other adapters, loaded or not, keep coming after it."""
    lora = LoraSettings(slots=slots, cpu_slots=slots)
    spec = ModelSpec(id="model", max_running=capacity, max_replicas=replicas, lora=lora)
    simulation = Simulation(spec)

    def waiter(number: int | None) -> Waiter:
        return Waiter(True, adapter=None if number is None else adapter(number))

    for earlier in before:
        simulation.ask(waiter(earlier))
    patient = waiter(number)
    simulation.ask(patient)
    for _ in range(12 * (len(before) + 2)):
        if patient in simulation.served:
            return
        for other in later:
            simulation.ask(waiter(other))
        simulation.step()
    raise AssertionError("the request is overtaken again and again")


class Memory(RuleBasedStateMachine):
    """Wakes that reserve memory, engines that become idle or leave, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 10
        self.held: dict[MemoryReservation, bool] = {}  # whether it is idle
        self.waiting: list[MemoryReservation] = []
        self.clock = itertools.count()
        self.idle_since: dict[MemoryReservation, int] = {}

    @rule(size=st.integers(1, 12))
    def reserve(self, size: int) -> None:
        self.waiting.append(MemoryReservation(size, lambda _: None))
        self.carry_out()

    @rule(data=st.data(), idle=st.booleans())
    def use(self, data: st.DataObject, idle: bool) -> None:
        """An engine becomes idle; or it is needed again, and stays if it was leaving."""
        if self.held:
            reservation = data.draw(st.sampled_from(list(self.held)))
            if not reservation.leaving or not idle:
                self.held[reservation] = idle
                self.idle_since[reservation] = next(self.clock)
                reservation.leaving = False
            self.carry_out()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """An engine that was put to sleep has left memory."""
        leaving = [reservation for reservation in self.held if reservation.leaving]
        if leaving:
            del self.held[data.draw(st.sampled_from(leaving))]
            self.carry_out()

    def carry_out(self) -> None:
        victims = [
            Victim(self.idle_since[reservation], reservation, lambda: None)
            for reservation, idle in self.held.items()
            if idle
        ]
        for decision in plan_memory(self.limit, self.held, self.waiting, victims):
            if isinstance(decision, Admit):
                used = sum(reservation.size for reservation in self.held) + decision.reservation.size
                assert used <= self.limit or not self.held, "the budget is exceeded"
                self.waiting.remove(decision.reservation)
                self.held[decision.reservation] = False
            else:
                assert isinstance(decision, Evict)
                reservation = decision.victim.reservation
                assert self.held[reservation], "an engine in use is put to sleep"
                assert not reservation.leaving
                reservation.leaving = True

    @invariant()
    def memory_is_within_its_budget(self) -> None:
        assert sum(reservation.size for reservation in self.held) <= self.limit or len(self.held) == 1

    @rule()
    def all_are_served_in_the_end(self) -> None:
        """Every wake is admitted, if every engine becomes idle and leaves when it is to."""
        for _ in range(3 * (len(self.waiting) + len(self.held)) + 3):
            for reservation in list(self.held):
                if reservation.leaving:
                    del self.held[reservation]
                elif not self.held[reservation]:
                    self.held[reservation] = True
                    self.idle_since[reservation] = next(self.clock)
            self.carry_out()
        assert not self.waiting, "a wake waits for memory for ever"


TestMemory = Memory.TestCase
TestMemory.settings = PROPERTY
