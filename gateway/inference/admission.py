"""Admission of a request: what it takes of the limits and of the budget, from its first byte to its end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.config.prices import price_list
from gateway.config.sections import Config
from gateway.http.context import RequestRecord
from gateway.inference.calls import CompletionCall, Generation
from gateway.inference.catalog import Model
from gateway.inference.estimates import Estimate, RelayedText
from gateway.inference.monthly_spend import MonthlySpend
from gateway.inference.sequences import number_of_prompts, sequences_of
from gateway.inference.token_counts import IN_THREAD_BYTES, PromptTokens, check_prompt_length
from metering.prices import FREE, Price, PriceList
from metering.reports.spending import spent_since
from metering.types import Outcome, Usage
from tenants.limits.admission import Admission, Admissions
from tenants.limits.budgets import Budgets
from tenants.limits.rate_limit_store import LimitStore
from tenants.limits.rate_limits import LimitBook, RateLimit
from tenants.limits.spend_limits import SpendLimitStore
from tenants.types import ProjectPrincipal

_COMPLETION_TOKENS = 16
"""What OpenAI and vLLM generate for a text completion that does not say how many."""
_UNKNOWN_CONTEXT = 8192
"""Output tokens reserved if the room in the context is unknown: for a model behind a ``url``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionControl:
    """Limits, budgets and prices, and the admissions that they decide."""

    limits: LimitStore
    spend_limits: SpendLimitStore
    budgets: Budgets
    spend: MonthlySpend
    prices: PriceList
    admissions: Admissions


async def open_admission(
    config: Config,
    database: AsyncEngine,
    *,
    clock_ns: Callable[[], int] = time.monotonic_ns,
    clock: Callable[[], float] = time.time,
    applied: Callable[[], Awaitable[bool]] | None = None,
) -> AdmissionControl:
    """Read the limits, and from the ledger what has been spent this month.

    ``clock_ns`` is that of the limits, ``clock`` (unix seconds) that of the months. ``applied`` returns when
    the database has what the ledger has, and whether it has.
    Raises `tenants.errors.StorageUnavailable` and `metering.errors.StorageUnavailable`.
    """
    defaults = config.limits
    book = LimitBook(
        RateLimit(
            requests_per_minute=defaults.requests_per_minute,
            tokens_per_minute=defaults.tokens_per_minute,
            requests_per_day=defaults.requests_per_day,
        )
    )
    budgets, prices = Budgets(clock), price_list(config.prices)
    limits, spend_limits = LimitStore(database, book), SpendLimitStore(database, budgets)
    await limits.load()
    await spend_limits.load()
    spend = MonthlySpend(budgets, partial(spent_since, database), applied)
    if config.prices:
        await spend.ready(clock())
    return AdmissionControl(
        limits=limits,
        spend_limits=spend_limits,
        budgets=budgets,
        spend=spend,
        prices=prices,
        admissions=Admissions(book, budgets, clock_ns=clock_ns),
    )


class Admitted:
    """One admitted request: charged while it goes on, settled once, in tokens and in money."""

    __slots__ = ("_admission", "_price")

    def __init__(self, admission: Admission, price: Price) -> None:
        self._admission = admission
        self._price = price

    def generated(self, output_tokens: int) -> None:
        """Charge the tokens generated so far."""
        self._admission.generated(output_tokens)

    def settle(self, usage: Usage, outcome: Outcome) -> None:
        """The request is over. The first settlement stands.

        A failure that has generated nothing counts as a request, but not as tokens.
        """
        failed = outcome is Outcome.FAILED and not usage.output_tokens
        input_tokens = 0 if failed else usage.input_tokens
        self._admission.settle(input_tokens, usage.output_tokens, self._price.cost(usage))

    def withdraw(self) -> None:
        """Nothing was done for the request: it is as if it had not been made. After `settle`, nothing."""
        self._admission.withdraw()


class AdmissionDemand(msgspec.Struct, frozen=True, kw_only=True):
    """A request that wants to be let in. ``body_bytes`` is the size of what an engine is sent."""

    principal: ProjectPrincipal
    model: Model
    call: Any
    body: dict[str, Any]
    body_bytes: int
    estimate: Estimate
    record: RequestRecord


async def admit(control: AdmissionControl, demand: AdmissionDemand) -> Admitted:
    """Charge the request, after limits of requests and the length of its prompt were checked.

    The caller settles or withdraws it, whatever the ending. Raises what `Admissions.admit` and
    `check_prompt_length` raise, and `metering.errors.StorageUnavailable` if the spend of the month cannot be
    read; then nothing has been charged.
    """
    principal, model = demand.principal, demand.model
    admissions = control.admissions
    adapter = model.adapter_name
    demand.record.standings = partial(admissions.standings, principal, model.id, adapter)
    price = control.prices.price(model.id, adapter, demand.record.started_at)
    matters = price != FREE or admissions.counts_tokens(principal, model.id, adapter)
    admissions.check_requests(principal, model.id, adapter)
    prompts = await check_prompt_length(model, demand.call, demand.body, demand.body_bytes, count=matters)
    input_tokens = cost = 0
    if matters:
        if prompts is None or not prompts.total:
            in_thread = demand.body_bytes > IN_THREAD_BYTES
            prompts = await asyncio.to_thread(_estimated, demand) if in_thread else _estimated(demand)
        input_tokens = prompts.total
        cost = price.most(input_tokens, _most_output(demand, prompts.longest))
    # When the request began, by the clock of the budgets: the ledger enters it into the same month.
    at = control.budgets.clock() - demand.record.elapsed_ms() / 1000
    if price != FREE:
        await control.spend.ready(at)
    admission = admissions.admit(principal, model.id, input_tokens, cost=cost, adapter=adapter, at=at)
    return Admitted(admission, price)


def _estimated(demand: AdmissionDemand) -> PromptTokens:
    """Where the gateway cannot count: what the ledger would enter, within what the request allows itself."""
    tokens = demand.estimate(RelayedText()).input_tokens
    truncated = demand.body.get("truncate_prompt_tokens")
    if isinstance(truncated, int) and truncated > 0:
        tokens = min(tokens, truncated * number_of_prompts(demand.call))
    return PromptTokens(tokens, tokens)


def _most_output(demand: AdmissionDemand, prompt_tokens: int) -> int:
    """The most tokens that can be generated: for each prompt and choice what was asked for, or fits."""
    call, context = demand.call, demand.model.max_model_len
    if not isinstance(call, Generation):
        return 0
    fits = _UNKNOWN_CONTEXT if context is None else max(0, context - prompt_tokens)
    if isinstance(call, CompletionCall):
        limit = _COMPLETION_TOKENS if call.max_tokens is None else call.max_tokens
    else:
        limit = fits if call.answer_limit is None else call.answer_limit
    each = limit if context is None else min(limit, fits)
    return each * sequences_of(call)
