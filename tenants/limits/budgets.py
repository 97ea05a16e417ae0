"""Monthly spend limits in memory: money is reserved before a request runs, and settled when it is over.

Amounts are whole picodollars (10**-12 dollars), which makes the price of a token a whole number; limits and
thresholds are in cents. A month is a calendar month in UTC, and a request belongs to the one it began in.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from tenants.errors import BudgetExceeded

CENT = 10**10
"""Picodollars."""

Whose = Literal["project", "organization"]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A project or an organization has spent as much as a threshold of its alerts, in one month.

    ``month`` is its first second, in unix seconds; ``None`` for the month that the clock shows.
    """

    subject_id: str
    threshold_cents: int
    spent: int
    month: int | None = field(default=None, compare=False)


@dataclass(slots=True)
class _Account:
    """What the running requests of a project or an organization may cost, whenever they began."""

    reserved: int = 0


@dataclass(slots=True)
class BudgetReservation:
    """What a running request may cost, of the month that it began in."""

    project_id: str
    organization_id: str
    amount: int
    month: int


@dataclass(slots=True)
class Budgets:
    """Limits, spend and reservations by project and organization; ids never coincide.

    A month is named by its first second. What was spent is kept by month, so a clock that leaves a month and
    comes back finds it as it was. A month that was not given to `load` begins with nothing.

    ``clock`` is in unix seconds, and may go back. ``on_crossing`` is called once for each threshold and
    month, within the settlement that crosses it: it must return at once and raise nothing.
    """

    clock: Callable[[], float] = time.time
    on_crossing: Callable[[Crossing], None] | None = None
    _limits: dict[str, int] = field(default_factory=dict)
    _thresholds: dict[str, frozenset[int]] = field(default_factory=dict)
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _months: dict[int, dict[str, int]] = field(default_factory=dict)
    _running: Counter[int] = field(default_factory=Counter)
    _last: tuple[int, int] = (0, 0)

    def load(self, spent: Mapping[str, int], month: int | None = None) -> None:
        """What has been spent in the month so far, by project and by organization; the clock's by default."""
        self._months[self.month_start() if month is None else month] = dict(spent)

    def loaded(self, month: int) -> bool:
        """Whether the spend of the month is known."""
        return month in self._months

    def months(self) -> list[int]:
        """The months whose spend is in memory."""
        return list(self._months)

    def forget(self, month: int) -> bool:
        """Frees the memory of a month, to be loaded again when it is needed.

        Returns ``False``, and does nothing, while a request runs that began in it.
        """
        if self._running[month]:
            return False
        self._months.pop(month, None)
        return True

    def month_start(self, at: float | None = None) -> int:
        """The first second of the month of a time in unix seconds, by default of now."""
        if at is None:
            at = self.clock()
        first, following = self._last
        if not first <= at < following:
            first, following = self._last = month_of(at)
        return first

    def set_limit(self, subject_id: str, cents: int | None) -> None:
        """From the next request on; ``None`` for no limit."""
        if cents is None:
            self._limits.pop(subject_id, None)
        else:
            self._limits[subject_id] = cents

    def limit(self, subject_id: str) -> int | None:
        """The limit in cents."""
        return self._limits.get(subject_id)

    def set_thresholds(self, subject_id: str, cents: Iterable[int]) -> None:
        """At which amounts `on_crossing` is called. One that is behind the spend waits for next month."""
        thresholds = frozenset(cents)
        if thresholds:
            self._thresholds[subject_id] = thresholds
        else:
            self._thresholds.pop(subject_id, None)

    def spent(self, subject_id: str) -> int:
        """What has been spent this month by requests that are over."""
        return self._months.get(self.month_start(), _NOTHING).get(subject_id, 0)

    def exhausted(self, subject_id: str) -> bool:
        """Whether the limit has been spent."""
        limit = self._limits.get(subject_id)
        return limit is not None and self.spent(subject_id) >= limit * CENT

    def check(self, project_id: str, organization_id: str, amount: int, at: float | None = None) -> None:
        """Check that an amount can be reserved; raise `BudgetExceeded` if not. An amount of 0 always can.

        ``at`` is when the request began, in unix seconds, by default now.
        """
        if not self._limits or not amount:
            return
        spent = self._months.get(self.month_start(at), _NOTHING)
        subjects: tuple[tuple[Whose, str], ...] = (("project", project_id), ("organization", organization_id))
        for whose, subject_id in subjects:
            limit = self._limits.get(subject_id)
            if limit is None:
                continue
            account = self._accounts.get(subject_id)
            reserved = 0 if account is None else account.reserved
            if spent.get(subject_id, 0) + reserved + amount > limit * CENT:
                raise BudgetExceeded(whose, limit, spent.get(subject_id, 0), reserved, amount)

    def reserve(
        self, project_id: str, organization_id: str, amount: int, at: float | None = None
    ) -> BudgetReservation:
        """Set so much aside. Call `check` first, and let nothing come between."""
        if amount:
            for subject_id in (project_id, organization_id):
                account = self._accounts.get(subject_id)
                if account is None:
                    account = self._accounts[subject_id] = _Account()
                account.reserved += amount
        month = self.month_start(at)
        self._running[month] += 1
        return BudgetReservation(project_id, organization_id, amount, month)

    def settle(self, reservation: BudgetReservation, cost: int) -> None:
        """The request is over and has cost so much. To be called once for each reservation."""
        month = reservation.month
        self._running[month] -= 1
        if not self._running[month]:
            del self._running[month]
        subjects = reservation.project_id, reservation.organization_id
        if reservation.amount:
            for subject_id in subjects:
                account = self._accounts[subject_id]
                account.reserved -= reservation.amount
                if not account.reserved:
                    del self._accounts[subject_id]
        if cost:
            spent = self._months.setdefault(month, {})
            for subject_id in subjects:
                before = spent.get(subject_id, 0)
                spent[subject_id] = before + cost
                self._report(subject_id, before, before + cost, month)

    def _report(self, subject_id: str, before: int, spent: int, month: int) -> None:
        """Report the thresholds that a spend has crossed: each once, since a month's spend only grows."""
        if self.on_crossing is None:
            return
        for cents in sorted(self._thresholds.get(subject_id, ())):
            if before < cents * CENT <= spent:
                self.on_crossing(Crossing(subject_id, cents, spent, month))


_NOTHING: Mapping[str, int] = {}


def month_of(at: float) -> tuple[int, int]:
    """The first second of the calendar month (UTC) of a time in unix seconds, and that of the next month."""
    day = datetime.fromtimestamp(at, UTC)
    year, month = day.year, day.month
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    starts = datetime(year, month, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC)
    return int(starts[0].timestamp()), int(starts[1].timestamp())
