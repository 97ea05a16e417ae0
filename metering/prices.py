"""What tokens cost. Exact: amounts are whole picodollars (10**-12 dollars)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

import msgspec

from metering.types import Usage

DOLLAR = 10**12
"""Picodollars."""
_A_MILLION = 10**6
_HOUR_MS = 3_600_000
_DAY_S = 86_400
_EPOCH = date(1970, 1, 1)
_MOST = Decimal(1_000_000)


class Costs(msgspec.Struct, frozen=True):
    """What one attempt costs, in picodollars, and the milliseconds of an engine that it used."""

    input: int = 0
    cached: int = 0
    output: int = 0
    engine: int = 0
    engine_ms: int = 0

    @property
    def total(self) -> int:
        """The price of all line items."""
        return self.input + self.cached + self.output + self.engine


NO_COSTS = Costs()


@dataclass(frozen=True, slots=True)
class Price:
    """Picodollars a token, and an hour of an engine's time."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    engine_hour: int = 0

    def costs(self, usage: Usage, engine_ms: int = 0) -> Costs:
        """What the usage costs by line item. Input from the cache has a price of its own.

        Time is rounded down to a whole picodollar; all else is exact.
        """
        cached = min(usage.cached_tokens, usage.input_tokens)
        return Costs(
            (usage.input_tokens - cached) * self.input,
            cached * self.cached_input,
            usage.output_tokens * self.output,
            engine_ms * self.engine_hour // _HOUR_MS,
            engine_ms,
        )

    def cost(self, usage: Usage) -> int:
        """What the tokens cost in all, in picodollars."""
        return self.costs(usage).total

    def most(self, input_tokens: int, output_tokens: int) -> int:
        """The most that a request can cost whose output is at most so much."""
        return input_tokens * max(self.input, self.cached_input) + output_tokens * self.output


FREE = Price()


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceEntry:
    """A price from a day on (UTC): of a model, with all adapters that have none of their own, or of one."""

    model: str
    price: Price
    adapter: str | None = None
    since: date = date.min


class PriceList:
    """Prices by model, adapter and day. What has no price costs nothing."""

    def __init__(self, entries: Iterable[PriceEntry] = ()) -> None:
        self._entries: dict[tuple[str, str | None], list[tuple[int, Price]]] = {}
        for entry in sorted(entries, key=lambda price: price.since, reverse=True):
            entries_of_model = self._entries.setdefault((entry.model, entry.adapter), [])
            entries_of_model.append(((entry.since - _EPOCH).days, entry.price))

    def price(self, model: str, adapter: str | None, at: float) -> Price:
        """The price of what began at ``at``, in unix seconds."""
        if not self._entries:
            return FREE
        day = at // _DAY_S
        if adapter is not None:
            for since, price in self._entries.get((model, adapter), ()):
                if since <= day:
                    return price
        for since, price in self._entries.get((model, None), ()):
            if since <= day:
                return price
        return FREE


def parse_price(dollars: Decimal) -> int:
    """Picodollars a token of a price in dollars per million tokens.

    Raises ValueError if that is not a whole number, is negative, or is more than a million dollars.
    """
    if not dollars.is_finite() or not 0 <= dollars <= _MOST:
        raise ValueError(f"must be between 0 and {_MOST} dollars per million tokens, not {dollars}")
    picodollars = dollars * (DOLLAR // _A_MILLION)
    if picodollars != int(picodollars):
        raise ValueError(f"must have at most 6 decimal places, not {dollars}")
    return int(picodollars)


def parse_time(dollars: Decimal) -> int:
    """Picodollars an hour of a price in dollars an hour.

    Raises ValueError if that is not a whole number, is negative, or is more than a million dollars.
    """
    if not dollars.is_finite() or not 0 <= dollars <= _MOST:
        raise ValueError(f"must be between 0 and {_MOST} dollars an hour, not {dollars}")
    picodollars = dollars * DOLLAR
    if picodollars != int(picodollars):
        raise ValueError(f"must have at most 12 decimal places, not {dollars}")
    return int(picodollars)
