"""What the ledger says about money: what the engines cost as they are run, and what would cost least.

The price is that of the hardware an engine needs, by the hour. As run, an engine is paid for while it is
awake or waking; always on, all the time; reserved, all the time at a lower price.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from metering.reports.engine_times import EngineTime, times_between
from metering.reports.sums import Selection, organizations, sums
from metering.tables import ledger_entries

_HOUR_MS = 3_600_000
_DAY_S = 86_400
_HOUR_S = 3_600
_A_MILLION = 1_000_000
_WAKE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceAssumptions:
    """Dollars: an hour of the hardware, reserved or not, and a million tokens of a hosted API."""

    hardware_hour: float
    reserved_hour: float | None = None
    hosted_input: float | None = None
    hosted_output: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a model did in so many hours; gaps are the idle seconds between requests."""

    model: str
    hours: float
    time: EngineTime
    requests: int
    input_tokens: int
    output_tokens: int
    gaps_s: Sequence[float] = ()
    wake_s: float = _WAKE_S

    @property
    def tokens(self) -> int:
        """The tokens of input and output together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepWarm:
    """How long an engine is kept awake after its last request, and the idle and waking seconds of that."""

    seconds: float
    idle_s: float
    wakes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """About one model. Shares and utilisations are from 0 to 1; ``None`` where nothing can be said."""

    work: Work
    utilisation: float
    as_run: float
    always_on: float
    hosted: float | None
    wake_share: float | None
    idle_share: float | None
    keep_warm: KeepWarm | None
    reserved_above: float | None
    own_above: float | None

    def per_million(self, dollars: float | None) -> float | None:
        """Dollars for a million tokens."""
        return None if dollars is None or not self.work.tokens else dollars * _A_MILLION / self.work.tokens


def advise(work: Work, rates: PriceAssumptions) -> Advice:
    """What it costs and what would be better.

    ``utilisation`` is the share of the time in which an engine was busy. ``reserved_above``: the share of the
    time awake from which a reserved machine is cheaper. ``own_above``: the utilisation from which a machine
    that is always on is cheaper than the hosted API, at the pace that its engines had while they were busy.
    """
    time, hour = work.time, rates.hardware_hour
    hosted = _hosted(work, rates)
    busy_hours = time.busy_ms / _HOUR_MS
    own_above = None
    if hosted and busy_hours:
        own_above = hour / (hosted / busy_hours)
    return Advice(
        work=work,
        utilisation=busy_hours / work.hours if work.hours else 0.0,
        as_run=time.total_ms / _HOUR_MS * hour,
        always_on=work.hours * hour,
        hosted=hosted,
        wake_share=time.waking_ms / time.total_ms if time.total_ms else None,
        idle_share=time.idle_ms / time.total_ms if time.total_ms else None,
        keep_warm=best_keep_warm(work.gaps_s, work.wake_s),
        reserved_above=None if rates.reserved_hour is None or not hour else rates.reserved_hour / hour,
        own_above=own_above,
    )


def _hosted(work: Work, rates: PriceAssumptions) -> float | None:
    if rates.hosted_input is None and rates.hosted_output is None:
        return None
    dollars = work.input_tokens * (rates.hosted_input or 0) + work.output_tokens * (rates.hosted_output or 0)
    return dollars / _A_MILLION


def best_keep_warm(gaps_s: Iterable[float], wake_s: float) -> KeepWarm | None:
    """The time to keep an engine awake for which idling and waking together would have cost least.

    A gap up to that time is idled through; a longer one costs the whole time, and a wake. The cost changes
    only at the lengths of the gaps, so only these, and zero, have to be tried.
    """
    gaps = sorted(gap for gap in gaps_s if gap > 0)
    if not gaps:
        return None
    best = KeepWarm(seconds=0.0, idle_s=0.0, wakes=len(gaps))
    idled = 0.0
    for number, gap in enumerate(gaps, 1):
        idled += gap
        longer = len(gaps) - number
        idle_s = idled + gap * longer
        if idle_s + longer * wake_s < best.idle_s + best.wakes * wake_s:
            best = KeepWarm(seconds=gap, idle_s=idle_s, wakes=longer)
    return best


async def work_between(connection: AsyncConnection, start: int, end: int) -> list[Work]:
    """What every model did from ``start`` to ``end``, whole hours in unix seconds, over all organizations."""
    tokens: dict[str, list[int]] = {}
    measures = ("requests", "input_tokens", "output_tokens")
    for organization_id in await organizations(connection):
        sums_by_hour = await sums(
            connection, Selection(organization_id), _DAY_S, (start, end), ["model"], measures
        )
        for (_, model), summed in sums_by_hour.items():
            counts = tokens.setdefault(model, [0, 0, 0])
            for index, name in enumerate(measures):
                counts[index] += summed[name]
    times: dict[str, EngineTime] = {}
    for (_, model), time in (await times_between(connection, start, end)).items():
        times.setdefault(model, EngineTime()).add(time)
    return [
        Work(
            model=model,
            hours=(end - start) / _HOUR_S,
            time=times.get(model, EngineTime()),
            requests=requests,
            input_tokens=read,
            output_tokens=written,
            gaps_s=await _gaps(connection, model, start, end),
            wake_s=await _wake_s(connection, model, start, end),
        )
        for model, (requests, read, written) in sorted(tokens.items())
    ]


async def _gaps(connection: AsyncConnection, model: str, start: int, end: int) -> list[float]:
    """Seconds in which no request of the model was under way, between two that were."""
    entry = ledger_entries.c
    statement = (
        select(entry.started_ms, func.coalesce(entry.total_ms, 0.0))
        .where(entry.model == model, entry.started_ms >= start * 1000, entry.started_ms < end * 1000)
        .order_by(entry.started_ms)
    )
    gaps: list[float] = []
    last: float | None = None
    async for started_ms, total_ms in await connection.stream(statement):
        if last is not None and started_ms > last:
            gaps.append((started_ms - last) / 1000)
        last = max(last or 0.0, started_ms + total_ms)
    return gaps


async def _wake_s(connection: AsyncConnection, model: str, start: int, end: int) -> float:
    """How long the wakes of the model took on average, as the requests saw it that waited for them."""
    entry = ledger_entries.c
    mean = await connection.scalar(
        select(func.avg(entry.wake_ms)).where(
            entry.model == model,
            entry.started_ms >= start * 1000,
            entry.started_ms < end * 1000,
            entry.wake_ms > 0,
            entry.tier.not_in(("hot",)),
        )
    )
    return _WAKE_S if mean is None else float(mean) / 1000
