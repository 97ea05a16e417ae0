"""Monthly spend limits in memory: money is reserved before a request runs, and settled when it is over.

Amounts are whole picodollars (10**-12 dollars), so that the price of a token is a whole number; limits and
thresholds are in cents. A month is a calendar month in UTC, and a request belongs to the one it began in.
"""

import time
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
    """A project or an organization has spent as much as a threshold of its alerts, in this month."""

    subject_id: str
    threshold_cents: int
    spent: int


@dataclass(slots=True)
class _Account:
    """What a project or an organization has spent this month, and what its running requests may cost."""

    spent: int = 0
    reserved: int = 0


@dataclass(slots=True)
class Reservation:
    """What a running request may cost, of the month that ends at ``month_ends``."""

    project_id: str
    organization_id: str
    amount: int
    month_ends: float


@dataclass(slots=True)
class Budgets:
    """Limits, spend and reservations by project and organization; ids never coincide.

    ``clock`` is in unix seconds. ``on_crossing`` is called once for each threshold and month, within the
    settlement that crosses it: it must return at once and raise nothing.
    """

    clock: Callable[[], float] = time.time
    on_crossing: Callable[[Crossing], None] | None = None
    _limits: dict[str, int] = field(default_factory=dict)
    _thresholds: dict[str, frozenset[int]] = field(default_factory=dict)
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _month_ends: float = 0.0

    def load(self, spent: Mapping[str, int]) -> None:
        """What has been spent this month so far, by project and by organization."""
        self._turn_page()
        for subject_id, amount in spent.items():
            self._account(subject_id).spent = amount

    def month_start(self) -> int:
        """The first second of this month."""
        return int(_month(self.clock())[0])

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
        self._turn_page()
        account = self._accounts.get(subject_id)
        return 0 if account is None else account.spent

    def exhausted(self, subject_id: str) -> bool:
        """Whether the limit has been spent."""
        limit = self._limits.get(subject_id)
        return limit is not None and self.spent(subject_id) >= limit * CENT

    def check(self, project_id: str, organization_id: str, amount: int) -> None:
        """Raises `BudgetExceeded` where so much cannot be reserved. What costs nothing always can."""
        self._turn_page()
        if not self._limits or not amount:
            return
        subjects: tuple[tuple[Whose, str], ...] = (("project", project_id), ("organization", organization_id))
        for whose, subject_id in subjects:
            limit = self._limits.get(subject_id)
            if limit is None:
                continue
            account = self._accounts.get(subject_id) or _Account()
            if account.spent + account.reserved + amount > limit * CENT:
                raise BudgetExceeded(whose, limit, account.spent, account.reserved, amount)

    def reserve(self, project_id: str, organization_id: str, amount: int) -> Reservation:
        """Sets so much aside. Call `check` first, and let nothing come between."""
        for subject_id in (project_id, organization_id):
            self._account(subject_id).reserved += amount
        return Reservation(project_id, organization_id, amount, self._month_ends)

    def settle(self, reservation: Reservation, cost: int) -> None:
        """The request is over and has cost so much. To be called once for each reservation."""
        self._turn_page()
        for subject_id in (reservation.project_id, reservation.organization_id):
            account = self._account(subject_id)
            account.reserved -= reservation.amount
            if reservation.month_ends == self._month_ends and cost:
                before, account.spent = account.spent, account.spent + cost
                self._report(subject_id, before, account.spent)

    def _account(self, subject_id: str) -> _Account:
        account = self._accounts.get(subject_id)
        if account is None:
            account = self._accounts[subject_id] = _Account()
        return account

    def _report(self, subject_id: str, before: int, spent: int) -> None:
        """What is spent in a month only grows, so that each threshold is crossed once."""
        if self.on_crossing is None:
            return
        for cents in sorted(self._thresholds.get(subject_id, ())):
            if before < cents * CENT <= spent:
                self.on_crossing(Crossing(subject_id, cents, spent))

    def _turn_page(self) -> None:
        """In a new month nothing is spent; what is reserved stays so."""
        now = self.clock()
        if now < self._month_ends:
            return
        self._month_ends = _month(now)[1]
        self._accounts = {key: account for key, account in self._accounts.items() if account.reserved}
        for account in self._accounts.values():
            account.spent = 0


def _month(at: float) -> tuple[float, float]:
    """The first second of the calendar month, and that of the next one."""
    day = datetime.fromtimestamp(at, UTC)
    year, month = day.year, day.month
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return datetime(year, month, 1, tzinfo=UTC).timestamp(), datetime(*following, 1, tzinfo=UTC).timestamp()
