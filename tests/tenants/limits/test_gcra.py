"""The rate limiter against a naive model in fractions, and what it promises."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.limits.gcra import Gcra, Rate, Refusal, Standing

MINUTE = 60_000_000_000


@dataclass
class Bucket:
    """The reference: a bucket of ``amount`` tokens that fills evenly, and may be overdrawn."""

    rate: Rate
    level: Fraction = field(init=False)
    at: int = 0

    def __post_init__(self) -> None:
        self.level = Fraction(self.rate.amount)

    def fill(self, now: int) -> None:
        gained = Fraction((now - self.at) * self.rate.amount, self.rate.period_ns)
        self.level = min(Fraction(self.rate.amount), self.level + gained)
        self.at = now

    def wait_ns(self, weight: int) -> Fraction:
        return (weight - self.level) * self.rate.period_ns / self.rate.amount


def standing(gcra: Gcra, rate: Rate, now: int) -> Standing:
    result = gcra.tightest([rate], now)
    assert result is not None
    return result


def refusal_of(gcra: Gcra, demands: Sequence[tuple[Rate, int]], now: int) -> Refusal | None:
    done = gcra.admit([rate for rate, _ in demands], [weight for _, weight in demands], now)
    return done if isinstance(done, Refusal) else None


RATES = [Rate("a", 7, 60), Rate("b", 3, 1000), Rate("c", 11, 13)]
STEPS = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.sampled_from(["admit", "admit", "admit", "charge"]),
        st.tuples(*[st.integers(0, 5) for _ in RATES]),
        st.sampled_from([(0,), (1,), (2,), (0, 1), (0, 1, 2)]),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_does_what_the_buckets_do(
    steps: Sequence[tuple[int, str, tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Exactly: what passes, how long a refusal says to wait, what is left; a refusal takes nothing."""
    gcra, buckets, now = Gcra(), [Bucket(rate) for rate in RATES], 0
    for passed, what, weights, which in steps:
        now += passed
        for bucket in buckets:
            bucket.fill(now)
        if what == "charge":
            for item in which:
                gcra.charge([RATES[item]], weights[item], now)
                buckets[item].level -= weights[item]
        else:
            refusal = refusal_of(gcra, [(RATES[item], weights[item]) for item in which], now)
            waits = [buckets[item].wait_ns(weights[item]) for item in which]
            assert (refusal is None) == (max(waits) <= 0)
            if refusal is None:
                for item in which:
                    buckets[item].level -= weights[item]
            elif all(weights[item] <= RATES[item].amount for item in which):
                assert refusal.wait_ns == -(-max(waits) // 1)
                answer = RATES.index(refusal.rate)
                assert -(-waits[which.index(answer)] // 1) == refusal.wait_ns
                assert refusal.weight == weights[answer]
        for bucket in buckets:
            visible = standing(gcra, bucket.rate, now)
            missing = bucket.rate.amount - bucket.level
            assert visible.remaining == max(0, bucket.level // 1)
            assert visible.reset_ns == -(-missing * bucket.rate.period_ns // bucket.rate.amount)


@given(
    st.integers(1, 50),
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), min_size=1, max_size=80),
)
def test_no_window_passes_more_than_the_rate_and_the_burst(
    amount: int, period: int, requests: list[tuple[int, int]]
) -> None:
    gcra, rate, now = Gcra(), Rate("k", amount, period), 0
    passed: list[tuple[int, int]] = []
    for gap, weight in requests:
        now += gap
        if refusal_of(gcra, [(rate, weight)], now) is None:
            passed.append((now, weight))
    for start in range(len(passed)):
        total = 0
        for at, weight in passed[start:]:
            total += weight
            assert total * period <= amount * (period + at - passed[start][0])


@given(st.integers(1, 100), st.integers(1, 10**6), st.lists(st.integers(1, 100), min_size=1, max_size=30))
def test_the_wait_of_a_refusal_is_right_to_the_nanosecond(
    amount: int, period: int, weights: list[int]
) -> None:
    gcra, rate, now = Gcra(), Rate("k", amount, period), 0
    for weight in weights:
        if weight > amount:
            continue
        refusal = refusal_of(gcra, [(rate, weight)], now)
        if refusal is not None:
            assert refusal_of(gcra, [(rate, weight)], now + refusal.wait_ns - 1) is not None
            now += refusal.wait_ns
            assert refusal_of(gcra, [(rate, weight)], now) is None


@given(st.integers(1, 100), st.integers(1, 1000), st.integers(0, 10_000))
def test_debt_is_paid_to_the_nanosecond(amount: int, period: int, debt: int) -> None:
    """What is used over the limit is owed, and the next request waits until just that has drained."""
    gcra, rate = Gcra(), Rate("k", amount, period)
    gcra.charge([rate], amount + debt, 0)
    refusal = refusal_of(gcra, [(rate, 1)], 0)
    assert refusal is not None
    assert refusal.wait_ns == -(-(debt + 1) * period // amount)
    assert refusal_of(gcra, [(rate, 1)], refusal.wait_ns) is None


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=20),
    st.integers(0, 19),
    st.integers(0, 200),
)
def test_giving_back_is_never_worth_more_than_never_having_taken(
    amount: int, charges: list[tuple[int, int]], taken_back: int, later: int
) -> None:
    rate, now = Rate("k", amount, 60), 0
    real, without = Gcra(), Gcra()
    given_back = None
    for number, (gap, weight) in enumerate(charges):
        now += gap
        if number == taken_back:
            done = real.admit([rate], [weight], now)
            if not isinstance(done, Refusal):
                given_back = done[0], weight
        else:
            real.charge([rate], weight, now)
            without.charge([rate], weight, now)
    now += later
    if given_back is not None:
        real.give_back(rate, given_back[1], given_back[0], now)
    assert standing(real, rate, now).reset_ns >= standing(without, rate, now).reset_ns


def test_what_is_given_back_at_once_was_never_taken() -> None:
    gcra, rate = Gcra(), Rate("k", 7, MINUTE)
    gcra.charge([rate], 3, 0)
    before = standing(gcra, rate, 5)
    charges = gcra.admit([rate], [4], 5)
    assert not isinstance(charges, Refusal)
    assert standing(gcra, rate, 5).remaining == 0
    gcra.give_back(rate, 4, charges[0], 5)
    assert standing(gcra, rate, 5) == before
    assert before == Standing(7, 4, -(-3 * MINUTE // 7) - 5)


def test_the_tightest_has_the_least_left_and_takes_longest_to_fill() -> None:
    gcra, rates = Gcra(), [Rate("a", 5, 60), Rate("b", 4, 60), Rate("c", 4, 6000)]
    assert gcra.tightest([], 0) is None
    assert gcra.tightest(rates, 0) == Standing(4, 4, 0)
    gcra.charge(rates[1:], 1, 0)
    assert gcra.tightest(rates, 0) == Standing(4, 3, 1500)
    gcra.charge(rates[:1], 7, 0)
    assert gcra.tightest(rates, 0) == Standing(5, 0, 84)


def test_a_weight_beyond_the_amount_never_passes() -> None:
    gcra, rate = Gcra(), Rate("k", 7, 60)
    refusal = refusal_of(gcra, [(rate, 8)], 10**6)
    assert refusal is not None
    assert len(gcra) == 0


def test_a_changed_amount_holds_at_once_and_what_was_used_stays_used() -> None:
    gcra, small, large = Gcra(), Rate("k", 10, MINUTE), Rate("k", 100, MINUTE)
    assert refusal_of(gcra, [(small, 10)], 0) is None
    assert refusal_of(gcra, [(small, 1)], 0) is not None
    assert standing(gcra, large, 0).remaining == 90
    assert refusal_of(gcra, [(large, 90)], 0) is None
    assert refusal_of(gcra, [(large, 1)], 0) is not None
    refusal = refusal_of(gcra, [(small, 1)], 0)
    assert refusal is not None
    assert refusal_of(gcra, [(small, 1)], refusal.wait_ns - 1) is not None
    assert refusal_of(gcra, [(small, 1)], refusal.wait_ns) is None


def test_idle_state_takes_no_memory() -> None:
    """A hundred thousand keys, a thousand of them at a time: what has drained is dropped as others come."""
    gcra, largest = Gcra(), 0
    for number in range(100_000):
        assert refusal_of(gcra, [(Rate(f"k{number}", 60, MINUTE), 1)], number * 1_000_000) is None
        largest = max(largest, len(gcra))
    assert largest <= 2 * 1000 + 10


@pytest.mark.parametrize(("amount", "period"), [(0, 1), (1, 0), (-1, 1)])
def test_a_rate_of_nothing_is_no_rate(amount: int, period: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Rate("k", amount, period)
