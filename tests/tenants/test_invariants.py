"""What limiter and fair queue promise over any run, beside what their own tests hold."""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from tenants.limits.gcra import Gcra, Rate, Refusal
from tenants.queueing.fair_queue import FairQueue, ServiceTier, Ticket
from tests.tenants.queueing.test_fair_queue import accounts

PERIOD = 1000


@dataclass
class Used:
    """The reference: tokens that are still held against a key, which drain as at its last charge."""

    tokens: Fraction = Fraction(0)
    at: int = 0
    drains: int = 1

    def now(self, at: int) -> Fraction:
        return max(Fraction(0), self.tokens - Fraction((at - self.at) * self.drains, PERIOD))


STEPS = st.lists(
    st.tuples(
        st.integers(0, 700),
        st.integers(0, 24),
        st.integers(1, 9),
        st.integers(0, 9),
        st.sampled_from(["admit", "admit", "charge"]),
    ),
    max_size=120,
)


@given(STEPS)
def test_amounts_change_and_idle_keys_are_dropped_and_nobody_gains(
    steps: list[tuple[int, int, int, int, str]],
) -> None:
    """Over many keys, each time with another amount: what was used stays used, to the nanosecond."""
    gcra, now = Gcra(), 0
    keys: dict[int, Used] = {}
    for passed, key, amount, weight, what in steps:
        now += passed
        used = keys.setdefault(key, Used(drains=amount))
        held = used.now(now)
        rate = Rate(str(key), amount, PERIOD)
        if what == "charge":
            gcra.charge([rate], weight, now)
            keys[key] = Used(held + weight, now, amount)
            continue
        refusal = gcra.admit([rate], [weight], now)
        if held + weight <= amount:
            assert not isinstance(refusal, Refusal)
            keys[key] = Used(held + weight, now, amount)
        else:
            assert isinstance(refusal, Refusal)
            if weight <= amount:
                assert refusal.wait_ns == -(-(held + weight - amount) * PERIOD // used.drains)
    busy = sum(used.now(now) > 0 for used in keys.values())
    assert busy <= len(gcra) <= len(keys)


@given(
    st.integers(1, 50),
    st.integers(1, 10**6),
    st.lists(st.integers(0, 60), max_size=20),
    st.integers(0, 10**6),
)
def test_what_is_shown_to_be_left_can_be_had_and_no_more(
    amount: int, period: int, charges: list[int], passed: int
) -> None:
    """The headers are right: so many tokens pass now, one more does not, and all do at the reset."""
    rate = Rate("k", amount, period)

    def at(now: int, weight: int) -> bool:
        gcra = Gcra()
        for charge in charges:
            gcra.charge([rate], charge, 0)
        return not isinstance(gcra.admit([rate], [weight], now), Refusal)

    gcra = Gcra()
    for charge in charges:
        gcra.charge([rate], charge, 0)
    standing = gcra.tightest([rate], passed)
    assert standing is not None
    assert standing.limit == amount
    assert not at(passed, standing.remaining + 1)
    if standing.remaining:
        assert at(passed, standing.remaining)
    assert at(passed + standing.reset_ns, amount)
    if standing.reset_ns:
        assert not at(passed + standing.reset_ns - 1, amount)


PROJECTS = ("a", "b", "c", "d")
COSTS = st.integers(1, 1000)


@settings(deadline=None)
@given(
    flood=st.lists(st.tuples(st.sampled_from(PROJECTS), COSTS, st.integers(1, 8)), min_size=1, max_size=80),
    served=st.integers(0, 60),
    depth=st.integers(1, 8),
    cost=COSTS,
)
def test_who_comes_anew_waits_for_one_request_of_each_other_project(
    flood: list[tuple[str, int, int]], served: int, depth: int, cost: int
) -> None:
    """However long the queues of the others are, and whatever they have been served."""
    queue = FairQueue()
    for project, each, weight in flood:
        queue.put(Ticket(project_id=project, cost=each, weight=weight))
    running: list[Ticket] = []
    for _ in range(min(served, len(flood) - 1)):
        taken = queue.take()
        assert taken is not None
        running.append(taken)
        if len(running) > depth:
            done = running.pop(0)
            queue.finish(done, done.cost)
    newcomer = Ticket(project_id="new", cost=cost)
    queue.put(newcomer)
    before: Counter[str] = Counter()
    while (taken := queue.take()) is not newcomer:
        assert taken is not None
        before[taken.project_id] += 1
    assert all(count == 1 for count in before.values()), before


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PROJECTS), COSTS, st.sampled_from(list(ServiceTier))), max_size=60))
def test_all_are_served_once_and_idleness_forgets_everything(
    requests: list[tuple[str, int, ServiceTier]],
) -> None:
    queue = FairQueue()
    tickets = [Ticket(project_id=project, cost=cost, tier=tier) for project, cost, tier in requests]
    for item in tickets:
        queue.put(item)
    taken = []
    while (served := queue.take()) is not None:
        taken.append(served)
    assert Counter(taken) == Counter(tickets)
    for item in taken:
        queue.finish(item, item.cost)
    assert (len(queue), accounts(queue)) == (0, 0)


@settings(deadline=None)
@given(
    heavy=st.lists(COSTS, min_size=20, max_size=60),
    light=st.lists(COSTS, min_size=20, max_size=60),
    weight=st.integers(1, 8),
    idle=st.integers(0, 20),
)
def test_idleness_is_neither_credit_nor_debt(
    heavy: list[int], light: list[int], weight: int, idle: int
) -> None:
    """From the moment in which both wait, their shares are within the bound, whichever was alone before."""
    queue, served = FairQueue(), {"a": Fraction(0), "b": Fraction(0)}
    for cost in heavy:
        queue.put(Ticket(project_id="a", cost=cost, weight=weight))
    for _ in range(min(idle, len(heavy) - 10)):
        alone = queue.take()
        assert alone is not None
        queue.finish(alone, alone.cost)
    for cost in light:
        queue.put(Ticket(project_id="b", cost=cost))
    while queue.waiting("a") and queue.waiting("b"):
        taken = queue.take()
        assert taken is not None
        queue.finish(taken, taken.cost)
        served[taken.project_id] += Fraction(int(taken.cost)) / int(taken.weight)
        largest = Fraction(max(heavy), weight) + max(light)
        assert abs(served["a"] - served["b"]) <= largest
