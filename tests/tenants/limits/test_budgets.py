"""Spend limits: what is reserved, what is settled, when the month turns, and who is told of a threshold."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.errors import BudgetExceeded, InvalidValue, NotFound
from tenants.limits.budgets import CENT, BudgetReservation, Budgets, Crossing
from tenants.limits.spend_limits import MAX_CENTS, SpendLimitStore
from tenants.store import Tenants
from tenants.types import Project


class Clock:
    """Unix seconds that a test sets."""

    def __init__(self, *day: int) -> None:
        self.at = datetime(*day, tzinfo=UTC).timestamp()  # type: ignore[arg-type, misc]

    def __call__(self) -> float:
        return self.at


def _spend(budgets: Budgets, cost: int, reserve: int | None = None) -> None:
    budgets.check("p", "o", cost if reserve is None else reserve)
    budgets.settle(budgets.reserve("p", "o", cost if reserve is None else reserve), cost)


@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), max_size=40),
)
def test_running_requests_together_never_overshoot(
    of_project: int, of_organization: int, requests: Sequence[tuple[int, int, bool]]
) -> None:
    """However requests overlap: what is spent and what may yet be spent stay within both limits."""
    budgets = Budgets()
    budgets.set_limit("p", of_project)
    budgets.set_limit("o", of_organization)
    running: list[tuple[BudgetReservation, int]] = []
    reserved = spent = 0
    for most, really, ends_first in requests:
        if ends_first and running:
            reservation, cost = running.pop(0)
            budgets.settle(reservation, cost)
            reserved, spent = reserved - reservation.amount, spent + cost
        fits = spent + reserved + most * CENT <= min(of_project, of_organization) * CENT
        if not fits and most:
            with pytest.raises(BudgetExceeded) as caught:
                budgets.check("p", "o", most * CENT)
            error = caught.value
            assert (error.spent, error.reserved, error.requested) == (spent, reserved, most * CENT)
            continue
        budgets.check("p", "o", most * CENT)
        running.append((budgets.reserve("p", "o", most * CENT), min(most, really) * CENT))
        reserved += most * CENT
        assert spent + reserved <= min(of_project, of_organization) * CENT
    assert budgets.spent("p") == budgets.spent("o") == spent


def test_a_new_month_begins_with_nothing_spent() -> None:
    clock = Clock(2026, 12, 31, 23, 59, 59)
    budgets = Budgets(clock)
    budgets.set_limit("p", 10)
    _spend(budgets, 10 * CENT)
    assert budgets.exhausted("p")
    with pytest.raises(BudgetExceeded):
        budgets.check("p", "o", 1)
    budgets.check("p", "o", 0)
    clock.at += 1
    assert budgets.spent("p") == 0
    assert not budgets.exhausted("p")
    _spend(budgets, 10 * CENT)
    assert budgets.month_start() == int(Clock(2027, 1, 1).at)


def test_a_request_belongs_to_the_month_that_it_began_in() -> None:
    clock = Clock(2026, 2, 28, 23, 59, 59)
    budgets = Budgets(clock)
    budgets.set_limit("p", 10)
    budgets.check("p", "o", 6 * CENT)
    running = budgets.reserve("p", "o", 6 * CENT)
    clock.at += 1
    with pytest.raises(BudgetExceeded):
        budgets.check("p", "o", 5 * CENT)
    budgets.settle(running, 6 * CENT)
    assert budgets.spent("p") == 0
    budgets.check("p", "o", 10 * CENT)


def test_each_threshold_is_told_once_a_month() -> None:
    clock, answer = Clock(2026, 5, 3), list[Crossing]()
    budgets = Budgets(clock, answer.append)
    budgets.load({"p": 3 * CENT, "o": 3 * CENT})
    budgets.set_thresholds("p", [2, 5, 6, 100])
    budgets.set_thresholds("o", [4])
    _spend(budgets, CENT)
    assert answer == [Crossing("o", 4, 4 * CENT)]
    _spend(budgets, 3 * CENT)
    assert answer[1:] == [Crossing("p", 5, 7 * CENT), Crossing("p", 6, 7 * CENT)]
    _spend(budgets, CENT)
    assert len(answer) == 3
    clock.at = Clock(2026, 6, 1).at
    _spend(budgets, 2 * CENT)
    assert answer[3:] == [Crossing("p", 2, 2 * CENT)]
    budgets.set_thresholds("p", [])
    _spend(budgets, 100 * CENT)
    assert answer[4:] == [Crossing("o", 4, 102 * CENT)]


def test_accounts_of_a_past_month_take_no_memory() -> None:
    clock = Clock(2026, 5, 3)
    budgets = Budgets(clock)
    budgets.load({})
    for number in range(1000):
        budgets.settle(budgets.reserve(f"p{number}", "o", 1), 1)
    running = budgets.reserve("p0", "o", 1)
    clock.at = Clock(2026, 6, 1).at
    assert budgets.spent("p1") == 0
    assert set(budgets._accounts) == {"p0", "o"}
    budgets.settle(running, 1)


def test_a_clock_that_passes_the_end_of_a_month_and_goes_back_forgets_nothing() -> None:
    clock = Clock(2026, 11, 30, 23, 59, 59)
    budgets = Budgets(clock)
    budgets.set_limit("p", 20)
    budgets.load({"p": 15 * CENT})
    _spend(budgets, 2 * CENT)
    for _ in range(3):
        clock.at += 2
        assert budgets.spent("p") == 0
        clock.at -= 2
        assert budgets.spent("p") == 17 * CENT
        with pytest.raises(BudgetExceeded):
            budgets.check("p", "o", 4 * CENT)
    clock.at += 1
    _spend(budgets, 20 * CENT)
    assert budgets.exhausted("p")
    clock.at = Clock(2027, 1, 1).at
    assert budgets.spent("p") == 0


def test_a_year_ahead_and_back_later_months_turn() -> None:
    clock = Clock(2027, 11, 26)
    budgets = Budgets(clock)
    budgets.set_limit("p", 10)
    _spend(budgets, 10 * CENT)
    clock.at = Clock(2026, 11, 26).at
    assert budgets.spent("p") == 0
    for year, month in ((2026, 11), (2026, 12), (2027, 1), (2027, 2)):
        clock.at = Clock(year, month, 2).at
        assert not budgets.exhausted("p")
        _spend(budgets, 10 * CENT)
        assert budgets.exhausted("p")
    clock.at = Clock(2027, 11, 27).at
    assert budgets.exhausted("p"), "what was entered for that month counts in it"


def test_the_month_is_that_in_which_the_request_began_whatever_the_clock_says() -> None:
    clock, crossings = Clock(2026, 12, 1), list[Crossing]()
    budgets = Budgets(clock, crossings.append)
    budgets.set_thresholds("p", [5])
    budgets.set_limit("p", 10)
    november, began = int(Clock(2026, 11, 1).at), clock.at - 1
    budgets.check("p", "o", 6 * CENT, began)
    reservation = budgets.reserve("p", "o", 6 * CENT, began)
    assert not budgets.forget(november), "a request of it runs"
    budgets.settle(reservation, 6 * CENT)
    assert [crossing.month for crossing in crossings] == [november]
    assert budgets.spent("p") == 0
    with pytest.raises(BudgetExceeded):
        budgets.check("p", "o", 5 * CENT, began)
    assert budgets.forget(november)
    assert budgets.months() == []


@pytest.fixture
def budgets() -> Budgets:
    return Budgets()


@pytest.fixture
def limits(database: AsyncEngine, budgets: Budgets) -> SpendLimitStore:
    return SpendLimitStore(database, budgets)


async def test_limits_are_set_changed_and_deleted(
    limits: SpendLimitStore, budgets: Budgets, database: AsyncEngine, project: Project
) -> None:
    organization_id = project.organization_id
    assert await limits.get(organization_id, project.id) is None
    await limits.set(organization_id, project.id, 100)
    await limits.set(organization_id, project.id, 200)
    await limits.set(organization_id, None, 300)
    assert (budgets.limit(project.id), budgets.limit(organization_id)) == (200, 300)
    again = Budgets()
    await SpendLimitStore(database, again).load()
    assert (again.limit(project.id), again.limit(organization_id)) == (200, 300)
    assert await limits.delete(organization_id, project.id)
    assert not await limits.delete(organization_id, project.id)
    assert await limits.get(organization_id, project.id) is None
    assert await limits.get(organization_id) == 300


async def test_another_organizations_project_is_not_there(
    limits: SpendLimitStore, store: Tenants, project: Project
) -> None:
    other = await store.organizations.create("other")
    for call in (
        limits.get(other.id, project.id),
        limits.set(other.id, project.id, 1),
        limits.delete(other.id, project.id),
    ):
        with pytest.raises(NotFound):
            await call


@pytest.mark.parametrize("cents", [-1, MAX_CENTS + 1])
async def test_a_bad_amount_is_named(limits: SpendLimitStore, project: Project, cents: int) -> None:
    with pytest.raises(InvalidValue) as caught:
        await limits.set(project.organization_id, project.id, cents)
    assert caught.value.param == "threshold_amount"


async def test_an_archived_project_gets_no_limit(
    limits: SpendLimitStore, store: Tenants, project: Project
) -> None:
    await store.projects.archive(project.organization_id, project.id)
    with pytest.raises(InvalidValue, match="archived"):
        await limits.set(project.organization_id, project.id, 1)
