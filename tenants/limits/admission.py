"""Lets a request in, or says why not: rate limits, concurrency and budget, all of them or none."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tenants.errors import RateLimitExceeded, RequestTooLarge
from tenants.limits.budgets import BudgetReservation, Budgets
from tenants.limits.gcra import Charge, Gcra, Rate, Refusal, Standing
from tenants.limits.rate_limits import Applicable, LimitBook
from tenants.types import ProjectPrincipal

_SECOND_NS = 10**9
_RETRY_CONCURRENCY_S = 1.0
"""The retry time of a concurrency limit, seconds: when a running request ends is not known."""


@dataclass(frozen=True, slots=True)
class Standings:
    """The tightest limit of requests and the tightest of tokens, where there are any."""

    requests: Standing | None = None
    tokens: Standing | None = None


class Admissions:
    """Admits requests, without awaiting anything: nothing comes between the check and the charge.

    ``clock_ns`` is in nanoseconds and does not go back.
    """

    def __init__(
        self, book: LimitBook, budgets: Budgets, *, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._book = book
        self._budgets = budgets
        self._clock_ns = clock_ns
        self._gcra = Gcra()
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        """Entries in memory: limits that have been charged, and counters of what runs."""
        return len(self._gcra) + len(self._running)

    def counts_tokens(self, principal: ProjectPrincipal, model: str, adapter: str | None = None) -> bool:
        """Whether `admit` needs to know the tokens of the input for a limit."""
        return bool(self._book.applicable(principal, model, adapter).tokens)

    def check_requests(self, principal: ProjectPrincipal, model: str, adapter: str | None = None) -> None:
        """Check that the limits of requests have room for one more, and charge nothing.

        For a request whose tokens are not counted yet. Raises `RateLimitExceeded`.
        """
        applicable = self._book.applicable(principal, model, adapter)
        rates = applicable.requests
        if not rates:
            return
        now_ns = self._clock_ns()
        done = self._gcra.admit(rates, [1] * len(rates), now_ns)
        if isinstance(done, Refusal):
            raise self._exceeded(applicable, done, now_ns)
        for rate, charge in zip(rates, done, strict=True):
            self._gcra.give_back(rate, 1, charge, now_ns)

    def admit(
        self,
        principal: ProjectPrincipal,
        model: str,
        input_tokens: int,
        *,
        cost: int = 0,
        batch: bool = False,
        adapter: str | None = None,
        at: float | None = None,
    ) -> "Admission":
        """Charges one request and its input; the caller settles the admission, whatever the ending.

        A request for an adapter is held to the limits of its base model and to its own.

        ``cost`` is the most that the request can cost, in picodollars, in the month of ``at``, the unix time
        at which it began (by default now). A request of a batch is held to the
        limit of batch tokens and to the budget alone. Raises `BudgetExceeded`, `RequestTooLarge` or
        `RateLimitExceeded`; then nothing has been charged.
        """
        applicable = self._book.applicable(principal, model, adapter)
        project_id, organization_id = principal.project_id, principal.organization_id
        self._budgets.check(project_id, organization_id, cost, at)
        if batch:
            applicable = Applicable(tokens=applicable.batch, names=applicable.names)
        for rate in applicable.tokens:
            if input_tokens > rate.amount:
                raise RequestTooLarge(applicable.names[rate.key], rate.amount, input_tokens)
        running = self._running
        for ceiling in applicable.ceilings:
            now = running.get(ceiling.key, 0)
            if now >= ceiling.most:
                raise RateLimitExceeded(ceiling.name, ceiling.most, 0, 1, _RETRY_CONCURRENCY_S)
        charges = self._charge(applicable, input_tokens)
        for ceiling in applicable.ceilings:
            running[ceiling.key] = running.get(ceiling.key, 0) + 1
        reservation = self._budgets.reserve(project_id, organization_id, cost, at)
        return Admission(self, applicable, input_tokens, charges, reservation, charges_output=not batch)

    def standings(self, principal: ProjectPrincipal, model: str, adapter: str | None = None) -> Standings:
        """How the caller's tightest limits for the model stand: those of which the least is left."""
        applicable = self._book.applicable(principal, model, adapter)
        now_ns, gcra = self._clock_ns(), self._gcra
        return Standings(gcra.tightest(applicable.requests, now_ns), gcra.tightest(applicable.tokens, now_ns))

    def _charge(self, applicable: Applicable, input_tokens: int) -> Sequence[Charge]:
        requests, tokens = applicable.requests, applicable.tokens
        if not requests and not tokens:
            return ()
        now_ns = self._clock_ns()
        weights = [1] * len(requests) + [input_tokens] * len(tokens)
        done = self._gcra.admit(requests + tokens, weights, now_ns)
        if isinstance(done, Refusal):
            raise self._exceeded(applicable, done, now_ns)
        return done

    def _exceeded(self, applicable: Applicable, refusal: Refusal, now_ns: int) -> RateLimitExceeded:
        rate = refusal.rate
        standing = self._gcra.tightest((rate,), now_ns)
        remaining = 0 if standing is None else standing.remaining
        name, wait_s = applicable.names[rate.key], refusal.wait_ns / _SECOND_NS
        return RateLimitExceeded(name, rate.amount, remaining, refusal.weight, wait_s)

    def charge_tokens(self, applicable: Applicable, tokens: int) -> None:
        """Charges tokens that have been used already."""
        self._gcra.charge(applicable.tokens, tokens, self._clock_ns())

    def give_back(self, rates: Sequence[Rate], weight: int, charges: Sequence[Charge]) -> None:
        """Give back what has not drained of the rates' charges."""
        now_ns = self._clock_ns()
        for rate, charge in zip(rates, charges, strict=True):
            self._gcra.give_back(rate, weight, charge, now_ns)

    def end(self, applicable: Applicable, reservation: BudgetReservation, cost: int) -> None:
        """A request is over: it runs no more, and has cost so much."""
        for ceiling in applicable.ceilings:
            left = self._running.pop(ceiling.key) - 1
            if left:
                self._running[ceiling.key] = left
        self._budgets.settle(reservation, cost)


class Admission:
    """One admitted request: charged while it goes on, settled once."""

    __slots__ = (
        "_admissions",
        "_applicable",
        "_charges",
        "_charges_output",
        "_input_tokens",
        "_output_tokens",
        "_reservation",
        "settled",
    )

    def __init__(
        self,
        admissions: Admissions,
        applicable: Applicable,
        input_tokens: int,
        charges: Sequence[Charge],
        reservation: BudgetReservation,
        *,
        charges_output: bool,
    ) -> None:
        self._admissions = admissions
        self._applicable = applicable
        self._input_tokens = input_tokens
        self._output_tokens = 0
        self._charges = charges
        self._charges_output = charges_output and bool(applicable.tokens)
        self._reservation = reservation
        self.settled = False

    def generated(self, output_tokens: int) -> None:
        """Charge the tokens generated so far; those since the last call are owed at once."""
        if not self._charges_output or self.settled:
            return
        new = output_tokens - self._output_tokens
        if new > 0:
            self._output_tokens = output_tokens
            self._admissions.charge_tokens(self._applicable, new)

    def settle(self, input_tokens: int, output_tokens: int, cost: int) -> None:
        """The request is over, and this is what it really took. The first settlement stands.

        Input that was charged and not taken is given back, as far as it has not drained anyway.
        """
        if self.settled:
            return
        self.generated(output_tokens)
        self.settled = True
        more, applicable = input_tokens - self._input_tokens, self._applicable
        if more > 0:
            self._admissions.charge_tokens(applicable, more)
        elif more < 0:
            of_tokens = self._charges[len(applicable.requests) :]
            self._admissions.give_back(applicable.tokens, -more, of_tokens)
        self._admissions.end(applicable, self._reservation, cost)

    def withdraw(self) -> None:
        """The request came to nothing through no fault of its own: it is as if it had not been made."""
        if self.settled:
            return
        requests = self._applicable.requests
        self._admissions.give_back(requests, 1, self._charges[: len(requests)])
        self.settle(0, 0, 0)
