"""The fair queue's guarantees, for any order of events, and what follows from them for tenants."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenants.queueing.fair_queue import FairQueue, FifoQueue, ServiceTier, Ticket, token_cost
from tenants.queueing.indexed_heap import IndexedHeap

FLEX, PRIORITY = ServiceTier.FLEX, ServiceTier.PRIORITY
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.25, "d": 7.0}


def accounts(queue: FairQueue) -> int:
    """How many accounts of projects the queue keeps."""
    return len(queue._interactive.flows) + len(queue._batch.flows)


def ticket(project: str, cost: float = 100.0, tier: ServiceTier = ServiceTier.DEFAULT) -> Ticket:
    return Ticket(project_id=project, cost=cost, weight=WEIGHTS.get(project, 1.0), tier=tier)


def serve_one(queue: FairQueue | FifoQueue) -> Ticket:
    taken = queue.take()
    assert taken is not None
    queue.finish(taken, taken.cost)
    return taken


@given(st.lists(st.tuples(st.integers(0, 20), st.one_of(st.none(), st.integers(0, 100)))))
def test_the_heap_agrees_with_sorting(steps: list[tuple[int, int | None]]) -> None:
    heap: IndexedHeap[int] = IndexedHeap()
    keys: dict[int, tuple[int, int]] = {}
    for item, key in steps:
        if key is None:
            heap.discard(item)
            keys.pop(item, None)
        else:
            keys[item] = (key, item)
            heap.put(item, keys[item])
        assert heap.first() == min(keys, key=keys.__getitem__, default=None)
        assert len(heap) == len(keys)
    for item in sorted(keys, key=keys.__getitem__):
        assert heap.first() == item
        heap.discard(item)


@settings(deadline=None)
@given(st.data())
def test_projects_that_always_wait_are_served_by_their_weights(data: st.DataObject) -> None:
    """Theorem 1 of the paper: no two of them ever differ by more than the largest request of each."""
    costs = st.floats(1, 1000)
    projects = data.draw(st.sampled_from([["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]]))
    depth = data.draw(st.integers(1, 4))
    queue, served = FairQueue(), dict.fromkeys(projects, 0.0)
    running: list[Ticket] = []
    for name in projects:
        for _ in range(3):
            queue.put(ticket(name, data.draw(costs)))
    for _ in range(data.draw(st.integers(1, 60))):
        taken = queue.take()
        assert taken is not None
        running.append(taken)
        served[taken.project_id] += taken.cost / taken.weight
        queue.put(ticket(taken.project_id, data.draw(costs)))
        if len(running) >= depth:
            done = running.pop(data.draw(st.integers(0, len(running) - 1)))
            queue.finish(done, done.cost)
        for item in projects:
            for other in projects:
                assert served[item] - served[other] <= 1000 / WEIGHTS[item] + 1000 / WEIGHTS[other] + 1e-6


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 500), st.integers(0, 500)), min_size=40))
def test_what_was_estimated_wrongly_is_put_right(requests: list[tuple[str, int, int]]) -> None:
    """Estimates do not matter in the end: by what they really cost, both are within the bound."""
    queue, served = FairQueue(), {"a": 0.0, "b": 0.0}
    plans = {name: [r for r in requests if r[0] == name] or [(name, 1, 1)] for name in "ab"}
    nth: Counter[str] = Counter()
    actual: dict[Ticket, int] = {}

    def put(name: str) -> None:
        _, estimate, really = plans[name][nth[name] % len(plans[name])]
        nth[name] += 1
        item = Ticket(project_id=name, cost=estimate)
        actual[item] = really
        queue.put(item)

    for name in "ab":
        put(name)
        put(name)
    for _ in range(200):
        taken = queue.take()
        assert taken is not None
        queue.finish(taken, actual[taken])
        served[taken.project_id] += actual[taken]
        put(taken.project_id)
        assert abs(served["a"] - served["b"]) <= 500 + 500


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue()
        self.lanes: dict[tuple[str, ServiceTier], list[Ticket]] = defaultdict(list)
        self.running: list[Ticket] = []

    @rule(
        project=st.sampled_from("abcd"),
        cost=st.floats(0, 1000),
        tier=st.sampled_from(list(ServiceTier)),
    )
    def put(self, project: str, cost: float, tier: ServiceTier) -> None:
        item = ticket(project, cost, tier)
        self.queue.put(item)
        self.lanes[project, tier].append(item)

    @rule(reserved=st.booleans())
    def take(self, reserved: bool) -> None:
        idle_before = {name for name, _ in self.lanes} - {
            item.project_id for item in self.running if not item.batch
        }
        taken = self.queue.take(reserved=reserved)
        if taken is None:
            assert reserved or not any(self.lanes.values()), "work conserving"
            return
        lane = self.lanes[taken.project_id, taken.tier]
        assert lane.pop(0) is taken, "first in, first out within a project and tier"
        if taken.tier is ServiceTier.DEFAULT:
            assert not self.lanes[taken.project_id, PRIORITY]
        if reserved:
            assert not taken.batch
            assert taken.project_id in idle_before
        self.running.append(taken)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), cost=st.floats(0, 2000))
    def finish(self, data: st.DataObject, cost: float) -> None:
        item = data.draw(st.sampled_from(self.running))
        self.running.remove(item)
        self.queue.finish(item, cost)

    @precondition(lambda self: any(self.lanes.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from([lane for lane in self.lanes.values() if lane]))
        item = data.draw(st.sampled_from(lane))
        lane.remove(item)
        self.queue.discard(item)

    @invariant()
    def counted(self) -> None:
        assert len(self.queue) == sum(len(lane) for lane in self.lanes.values())
        for name in "abcd":
            mine = sum(len(lane) for (owner, _), lane in self.lanes.items() if owner == name)
            assert self.queue.waiting(name) == mine
        if not self.running and not len(self.queue):
            assert accounts(self.queue) == 0

    @invariant()
    def accounts_are_sound(self) -> None:
        for its in (self.queue._interactive, self.queue._batch):
            for flow in its.flows.values():
                assert flow.tag >= flow.floor - 1e-6
                assert flow.running >= 0
                if flow:
                    assert flow in its._heap


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_who_asks_rarely_goes_before_a_flood() -> None:
    queue = FairQueue()
    for _ in range(64):
        queue.put(ticket("flood"))
    for _ in range(20):
        serve_one(queue)
    queue.put(ticket("rare"))
    assert serve_one(queue).project_id == "rare"


def test_a_flood_in_first_come_first_served_goes_before_all_who_come_later() -> None:
    queue = FifoQueue()
    for _ in range(3):
        queue.put(ticket("flood"))
    queue.put(ticket("rare"))
    assert [serve_one(queue).project_id for _ in range(4)] == ["flood", "flood", "flood", "rare"]
    assert queue.take() is None
    assert queue.waiting("flood") == 0


def test_idle_time_gives_no_credit() -> None:
    queue = FairQueue()
    for _ in range(50):
        queue.put(ticket("busy"))
    for _ in range(20):
        serve_one(queue)
    for _ in range(20):
        queue.put(ticket("late"))
    order = Counter(serve_one(queue).project_id for _ in range(20))
    assert order["busy"] == pytest.approx(10, abs=1)


def test_an_overestimate_that_idleness_has_cancelled_is_no_credit() -> None:
    queue = FairQueue()
    queue.put(ticket("sly", 1000))
    for _ in range(60):
        queue.put(ticket("busy"))
    first = queue.take()
    assert first is not None
    assert first.project_id == "sly"
    for _ in range(20):
        serve_one(queue)
    for _ in range(20):
        queue.put(ticket("sly"))
    queue.finish(first, 0)
    order = Counter(serve_one(queue).project_id for _ in range(20))
    assert order["sly"] <= 11


def test_who_underestimates_pays_afterwards() -> None:
    queue = FairQueue()
    for _ in range(10):
        queue.put(ticket("a", 100))
        queue.put(ticket("liar", 1))
    first = [queue.take() for _ in range(2)]
    for taken in first:
        assert taken is not None
        queue.finish(taken, 500 if taken.project_id == "liar" else 100)
    assert [serve_one(queue).project_id for _ in range(4)] == ["a"] * 4


def test_batches_yield_and_are_not_starved() -> None:
    queue = FairQueue()
    for _ in range(200):
        queue.put(ticket("batch", tier=FLEX))
        queue.put(ticket("chat"))
    order = Counter(serve_one(queue).project_id for _ in range(170))
    assert order["batch"] == pytest.approx(10, abs=1)
    for _ in range(40):
        serve_one(queue)
    queue.put(ticket("late"))
    assert "late" in {serve_one(queue).project_id for _ in range(2)}


def test_batches_get_everything_where_nobody_is_interactive() -> None:
    queue = FairQueue()
    for _ in range(5):
        queue.put(ticket("batch", tier=FLEX))
    assert [serve_one(queue).project_id for _ in range(5)] == ["batch"] * 5
    assert queue.take() is None


def test_priority_overtakes_the_projects_own_requests_alone() -> None:
    queue = FairQueue()
    for _ in range(10):
        queue.put(ticket("modest"))
        queue.put(ticket("loud"))
    for _ in range(10):
        queue.put(ticket("loud", tier=PRIORITY))
    order = [serve_one(queue) for _ in range(10)]
    assert Counter(taken.project_id for taken in order)["modest"] == 5
    assert all(taken.tier is PRIORITY for taken in order if taken.project_id == "loud")


def test_a_reserved_slot_is_for_whom_nothing_runs() -> None:
    queue = FairQueue()
    for _ in range(4):
        queue.put(ticket("flood"))
        queue.put(ticket("batch", tier=FLEX))
    assert queue.take() is not None
    assert queue.take(reserved=True) is None
    queue.put(ticket("rare"))
    taken = queue.take(reserved=True)
    assert taken is not None
    assert taken.project_id == "rare"


def test_projects_that_have_gone_are_forgotten() -> None:
    queue = FairQueue()
    for _ in range(10_000):
        queue.put(ticket("busy", 1000))
    for number in range(10_000):
        queue.put(ticket(f"once-{number}", 1))
        serve_one(queue)
        serve_one(queue)
    assert accounts(queue) < 200


def test_cost_counts_output_twice() -> None:
    assert token_cost(10, 20) == 50


@pytest.mark.parametrize(("cost", "weight"), [(-1, 1), (1, 0), (1, -2), (1, float("nan"))])
def test_a_ticket_must_make_sense(cost: float, weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        Ticket(project_id="a", cost=cost, weight=weight)
