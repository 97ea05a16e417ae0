"""``[[prices]]`` of the configuration."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from gateway.config.faults import Fault
from metering.prices import Price, PriceEntry, PriceList, parse_price, parse_time


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """One ``[[prices]]`` table: dollars for a million tokens of a model, from a day on (UTC).

    ``engine_hour``: dollars for an hour of its engine's time besides, from the turn of a request to its end.
    """

    model: str
    adapter: str | None = None
    since: date | None = None
    input: Decimal = Decimal(0)
    cached_input: Decimal | None = None
    output: Decimal = Decimal(0)
    engine_hour: Decimal = Decimal(0)

    def entry(self) -> PriceEntry:
        """What ``metering`` needs to know of it. Raises ValueError where a price cannot be exact."""
        cached = self.input if self.cached_input is None else self.cached_input
        price = Price(
            parse_price(self.input),
            parse_price(cached),
            parse_price(self.output),
            parse_time(self.engine_hour),
        )
        return PriceEntry(model=self.model, adapter=self.adapter, since=self.since or date.min, price=price)


def price_faults(prices: Sequence[PriceConfig], index: int, models: Collection[str]) -> Iterator[Fault]:
    """What is wrong with the table of this number."""
    price = prices[index]
    if price.model not in models:
        yield Fault("prices", "model", f"there is no model {price.model!r}", index)
    if price.adapter is not None and not price.adapter.startswith(f"ft:{price.model}:"):
        yield Fault(
            "prices",
            "adapter",
            f"must be the name of an adapter of the model, which begins with ft:{price.model}:",
            index,
        )
    same = (price.model, price.adapter, price.since)
    if any((other.model, other.adapter, other.since) == same for other in prices[:index]):
        yield Fault("prices", "model", "there are two prices for the same model, adapter and day", index)
    for name, value in (
        ("input", price.input), ("cached_input", price.cached_input), ("output", price.output)
    ):  # fmt: skip
        try:
            parse_price(value or Decimal(0))
        except ValueError as error:
            yield Fault("prices", name, str(error), index)
    try:
        parse_time(price.engine_hour)
    except ValueError as error:
        yield Fault("prices", "engine_hour", str(error), index)


def price_list(prices: Iterable[PriceConfig]) -> PriceList:
    """The prices of a configuration that has been checked."""
    return PriceList(price.entry() for price in prices)
