"""Admission: all limits or none, debt, what is given back, and that nothing stays behind."""

import contextlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenants.errors import BudgetExceeded, RateLimitExceeded, RequestTooLarge
from tenants.limits.admission import Admission, Admissions
from tenants.limits.budgets import CENT, Budgets
from tenants.limits.gcra import Standing
from tenants.limits.rate_limits import LimitBook, RateLimit, SubjectType
from tenants.types import ALL_SCOPES, KeyKind, ProjectPrincipal

SECOND = 10**9


def principal(key_id: str = "key_1", user_id: str | None = None) -> ProjectPrincipal:
    return ProjectPrincipal(KeyKind.PROJECT, key_id, "org-1", "acme", "proj_1", user_id, ALL_SCOPES)


@dataclass
class Stage:
    """Admissions with a clock that stands still until a test moves it."""

    limit: RateLimit
    now_ns: int = 0
    budgets: Budgets = field(default_factory=Budgets)
    book: LimitBook = field(init=False)
    admissions: Admissions = field(init=False)

    def __post_init__(self) -> None:
        self.book = LimitBook(self.limit)
        self.admissions = Admissions(self.book, self.budgets, clock_ns=lambda: self.now_ns)

    def admit(
        self, tokens: int = 0, *, cost: int = 0, key_id: str = "key_1", batch: bool = False
    ) -> Admission:
        return self.admissions.admit(principal(key_id), "m", tokens, cost=cost, batch=batch)

    def refused(self, tokens: int = 0) -> RateLimitExceeded:
        with pytest.raises(RateLimitExceeded) as caught:
            self.admit(tokens)
        return caught.value

    def remaining(self) -> tuple[int | None, int | None]:
        standings = self.admissions.standings(principal(), "m")
        requests, tokens = standings.requests, standings.tokens
        return (
            None if requests is None else requests.remaining,
            None if tokens is None else tokens.remaining,
        )


def test_a_refusal_names_the_limit_its_size_and_when_it_frees() -> None:
    stage = Stage(RateLimit(requests_per_minute=2))
    stage.admit()
    stage.admit()
    refusal = stage.refused()
    assert refusal.name == "requests per minute of the project for `m`"
    assert (refusal.limit, refusal.remaining, refusal.requested) == (2, 0, 1)
    assert refusal.retry_after_s == 30.0
    stage.now_ns = 30 * SECOND - 1
    stage.refused()
    stage.now_ns += 1
    stage.admit()


def test_the_longest_wait_is_told_where_several_limits_refuse() -> None:
    stage = Stage(RateLimit(requests_per_minute=1, requests_per_day=1))
    stage.admit()
    refusal = stage.refused()
    assert refusal.name.startswith("requests per day")
    assert refusal.retry_after_s == 86400.0


@pytest.mark.parametrize(
    "limit",
    [
        RateLimit(requests_per_minute=5, tokens_per_minute=100, concurrent_requests=1),
        RateLimit(requests_per_minute=5, tokens_per_minute=10),
        RateLimit(requests_per_minute=1, tokens_per_minute=100),
    ],
)
def test_a_refusal_takes_nothing_of_any_limit(limit: RateLimit) -> None:
    stage = Stage(limit)
    stage.book.set_subject("org-1", SubjectType.KEY, "key_1", limit)
    stage.admit(8)
    before = stage.admissions.standings(principal(), "m"), len(stage.admissions)
    for _ in range(10):
        stage.refused(8)
    assert (stage.admissions.standings(principal(), "m"), len(stage.admissions)) == before


def test_too_much_for_the_whole_limit_is_told_as_such() -> None:
    stage = Stage(RateLimit(tokens_per_minute=10))
    stage.admit(10)
    with pytest.raises(RequestTooLarge) as caught:
        stage.admit(11)
    assert (caught.value.limit, caught.value.requested) == (10, 11)


def test_output_is_owed_and_delays_the_next_request() -> None:
    stage = Stage(RateLimit(tokens_per_minute=60))
    admission = stage.admit(20)
    for count in (1, 1, 30, 29, 100):
        admission.generated(count)
    assert stage.remaining() == (None, 0)
    admission.settle(20, 100, 0)
    assert stage.refused(1).retry_after_s == 61.0
    stage.now_ns = 61 * SECOND
    stage.admit(1)


def test_a_settlement_corrects_the_input_both_ways() -> None:
    stage = Stage(RateLimit(tokens_per_minute=100))
    stage.admit(40).settle(10, 5, 0)
    assert stage.remaining() == (None, 85)
    stage.admit(5).settle(20, 0, 0)
    assert stage.remaining() == (None, 65)


def test_the_first_settlement_stands() -> None:
    stage = Stage(RateLimit(tokens_per_minute=100, concurrent_requests=None))
    stage.book.set_subject("org-1", SubjectType.KEY, "key_1", RateLimit(concurrent_requests=2))
    first, second = stage.admit(10), stage.admit(10)
    first.settle(10, 5, 0)
    for _ in range(3):
        first.settle(0, 0, 0)
        first.withdraw()
        first.generated(50)
    assert stage.remaining() == (None, 75)
    stage.admit(10)
    stage.refused(10)
    second.settle(10, 0, 0)
    stage.admit(10)


def test_what_is_withdrawn_was_never_made() -> None:
    stage = Stage(RateLimit(requests_per_minute=3, tokens_per_minute=50), budgets=Budgets())
    stage.budgets.set_limit("proj_1", 1)
    stage.admit(50, cost=CENT).withdraw()
    assert stage.remaining() == (3, 50)
    stage.admit(50, cost=CENT)


def test_concurrent_requests_are_counted_by_key() -> None:
    stage = Stage(RateLimit())
    for key_id in ("key_1", "key_2"):
        stage.book.set_subject("org-1", SubjectType.KEY, key_id, RateLimit(concurrent_requests=2))
    running = [stage.admit(), stage.admit()]
    refusal = stage.refused()
    assert (refusal.name, refusal.limit, refusal.retry_after_s) == ("concurrent requests of the key", 2, 1.0)
    stage.admit(key_id="key_2").settle(0, 0, 0)
    for item in running:
        item.settle(1, 1, 0)
    assert len(stage.admissions) == 0


def test_a_limit_changed_while_requests_run_holds_for_the_next() -> None:
    stage = Stage(RateLimit())
    stage.book.set_subject("org-1", SubjectType.KEY, "key_1", RateLimit(concurrent_requests=1))
    running = stage.admit()
    stage.refused()
    stage.book.set_subject("org-1", SubjectType.KEY, "key_1", RateLimit(concurrent_requests=2))
    second = stage.admit()
    stage.book.set_subject("org-1", SubjectType.KEY, "key_1", RateLimit())
    stage.admit().settle(0, 0, 0)
    running.settle(0, 0, 0)
    second.settle(0, 0, 0)
    assert len(stage.admissions) == 0


def test_a_budget_is_reserved_and_settled() -> None:
    stage = Stage(RateLimit(requests_per_minute=10))
    stage.budgets.set_limit("org-1", 10)
    first = stage.admit(cost=6 * CENT)
    with pytest.raises(BudgetExceeded) as caught:
        stage.admit(cost=6 * CENT)
    assert (caught.value.whose, caught.value.reserved) == ("organization", 6 * CENT)
    assert stage.remaining() == (9, None), "what is over the budget takes nothing of a limit"
    first.settle(0, 0, CENT)
    stage.admit(cost=6 * CENT)


def test_a_limit_that_refuses_reserves_nothing() -> None:
    stage = Stage(RateLimit(requests_per_minute=1))
    stage.budgets.set_limit("proj_1", 10)
    stage.admit(cost=CENT)
    stage.refused()
    stage.now_ns = 60 * SECOND
    stage.admit(cost=9 * CENT)


def test_a_batch_is_held_to_its_own_limit() -> None:
    stage = Stage(RateLimit(requests_per_minute=1, tokens_per_minute=5, batch_input_tokens_per_day=30))
    stage.admit(20, batch=True).settle(20, 500, 0)
    stage.admit(10, batch=True)
    assert stage.remaining() == (1, 5)
    with pytest.raises(RateLimitExceeded, match="batch input tokens per day"):
        stage.admit(1, batch=True)


def test_the_tightest_limit_is_shown() -> None:
    stage = Stage(RateLimit(requests_per_minute=60, tokens_per_minute=1000))
    stage.book.set_subject(
        "org-1", SubjectType.KEY, "key_1", RateLimit(requests_per_day=10, tokens_per_minute=900)
    )
    stage.admit(100)
    standings = stage.admissions.standings(principal(), "m")
    assert standings.requests == Standing(10, 9, 8640 * SECOND)
    assert standings.tokens == Standing(900, 800, -(-100 * 60 * SECOND // 900))
    assert stage.admissions.standings(principal("key_2"), "m").tokens == Standing(1000, 900, 6 * SECOND)
    assert Stage(RateLimit()).remaining() == (None, None)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 60)), max_size=60))
def test_however_requests_end_nothing_stays_behind(steps: list[tuple[int, int, int]]) -> None:
    """Requests overlap, end in every way, and a minute later all is as it was at the start."""
    limit = RateLimit(requests_per_minute=20, tokens_per_minute=100, concurrent_requests=None)
    stage = Stage(limit)
    stage.budgets.set_limit("proj_1", 50)
    stage.book.set_subject("org-1", SubjectType.PROJECT, "proj_1", RateLimit(concurrent_requests=3))
    running: list[Admission] = []
    for how, tokens, output in steps:
        stage.now_ns += SECOND
        with contextlib.suppress(RateLimitExceeded):
            running.append(stage.admit(tokens, cost=tokens))
        assert len(running) <= 3
        if running and how == 0:
            running.pop(0).withdraw()
        elif running and how == 1:
            running.pop(0).settle(tokens, output, 0)
        elif running and how == 2:
            running[0].generated(output)
    for item in running:
        item.settle(0, 0, 0)
    assert stage.budgets.spent("proj_1") == 0
    assert stage.budgets._accounts.get("proj_1") is None or not stage.budgets._accounts["proj_1"].reserved
    stage.now_ns += 3600 * SECOND
    assert stage.remaining() == (20, 100)
    assert stage.admissions._running == {}


def test_the_number_of_requests_is_checked_without_a_charge() -> None:
    stage = Stage(RateLimit(requests_per_minute=2, tokens_per_minute=10))
    for _ in range(5):
        stage.admissions.check_requests(principal(), "m")
    assert stage.remaining() == (2, 10)
    stage.admit()
    stage.admit()
    with pytest.raises(RateLimitExceeded) as caught:
        stage.admissions.check_requests(principal(), "m")
    assert caught.value.limit == 2
    stage.now_ns += 60 * SECOND
    stage.admissions.check_requests(principal(), "m")
    assert stage.remaining()[0] == 2
