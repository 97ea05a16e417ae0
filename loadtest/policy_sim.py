"""What keep-alive policies cost and spare: a simulation of one engine under one trace of arrivals.

    python -m loadtest policy-sim --help

The engine is hot while it works and for ``idle_pause_s`` after; then paused until its policy lets it sleep;
then asleep, in a snapshot or cold. It serves any number of requests at once, each in the same time. It begins
asleep.
"""

import argparse
import math
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from coldstart.keepalive import FixedKeepAlive, HistogramSettings, HybridHistogram, KeepAlive, KeepAlivePolicy
from coldstart.tiers import SleepTier
from loadtest import arrivals

TRACES: dict[str, Callable[[Random, float], Iterator[float]]] = {
    "poisson": arrivals.poisson,
    "diurnal": arrivals.diurnal,
    "bursty": arrivals.bursty,
    "periodic": arrivals.periodic,
    "rare": arrivals.rare,
}
_ASLEEP = KeepAlive(math.inf, 0.0, "fixed")

_ASLEEP_AS = {SleepTier.SNAPSHOT: "in a snapshot", SleepTier.COLD: "cold"}

_LEGEND = """\
One engine, one trace of arrivals, one policy a row; a simulation, not a measurement. Traces: *poisson* one
request in 10 min on average; *diurnal* one a minute at noon, next to none at midnight; *bursty* sessions of 5
to 30 requests, 2 h apart; *periodic* every hour, a minute early or late; *rare* every 6 h, 5 min early or
late.

*hot*, *paused*, *snapshot*, *cold*: requests by the tier that they found the engine in; one that joins a wake
counts with it. *prewakes*: wakes that no request asked for. *GB s*: memory times the time that the engine was
hot, paused or waking. The ratios are to the first fixed keep-alive of the same trace. *hybrid* names the
width of the bins and the range of the histogram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What an engine takes: seconds, and gigabytes while it is not asleep."""

    memory_gb: float = 1.8
    service_s: float = 2.0
    idle_pause_s: float = 10.0
    paused_wake_s: float = 0.01
    asleep_wake_s: float = 0.1
    asleep: SleepTier = SleepTier.SNAPSHOT

    def found(self, plan: KeepAlive, idle_s: float) -> tuple[SleepTier, float]:
        """The tier that a request finds ``idle_s`` after the last one, and how long it waits."""
        since_s = idle_s - plan.prewake_after_s
        if not 0 <= since_s < plan.keep_alive_s:
            return self.asleep, self.asleep_wake_s
        hot_after_s = self.asleep_wake_s if plan.prewake_after_s > 0 else 0.0
        if since_s < hot_after_s:
            return self.asleep, hot_after_s - since_s
        if since_s < hot_after_s + self.idle_pause_s:
            return SleepTier.HOT, 0.0
        return SleepTier.PAUSED, self.paused_wake_s


@dataclass(slots=True)
class Outcome:
    """What a replay came to."""

    by_tier: dict[SleepTier, int] = field(default_factory=lambda: dict.fromkeys(SleepTier, 0))
    prewakes: int = 0
    memory_gb_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)

    def rest(self, engine: Engine, plan: KeepAlive, idle_s: float) -> None:
        """Count an idle time."""
        awake_s = min(max(idle_s - plan.prewake_after_s, 0.0), plan.keep_alive_s)
        self.memory_gb_s += engine.memory_gb * awake_s
        self.prewakes += 0 < plan.prewake_after_s <= idle_s

    @property
    def wait_s(self) -> float:
        """What all requests together waited."""
        return math.fsum(self.waits_s)

    @property
    def wait_p99_s(self) -> float:
        """By nearest rank; 0 without requests."""
        ordered = sorted(self.waits_s)
        return ordered[-(-99 * len(ordered) // 100) - 1] if ordered else 0.0


def replay(times_s: Iterable[float], policy: KeepAlivePolicy, engine: Engine, duration_s: float) -> Outcome:
    """One engine under these arrivals, ascending, from 0 to ``duration_s`` or the last request's end."""
    outcome = Outcome()
    plan, idle_since_s = _ASLEEP, 0.0
    tier, ready_s = engine.asleep, 0.0
    for at_s in times_s:
        wait_s = max(ready_s - at_s, 0.0)
        if at_s >= idle_since_s:
            idle_s = at_s - idle_since_s
            outcome.rest(engine, plan, idle_s)
            if outcome.waits_s:
                policy.observe_idle(idle_s)
            tier, wait_s = engine.found(plan, idle_s)
            ready_s, idle_since_s = at_s + wait_s, at_s
        elif at_s >= ready_s:
            tier = SleepTier.HOT
        end_s = at_s + wait_s + engine.service_s
        outcome.by_tier[tier] += 1
        outcome.waits_s.append(wait_s)
        outcome.memory_gb_s += engine.memory_gb * (end_s - idle_since_s)
        plan, idle_since_s = policy.windows(), end_s
    outcome.rest(engine, plan, max(duration_s - idle_since_s, 0.0))
    return outcome


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    trace: str
    policy: str
    outcome: Outcome
    against: Outcome

    def cells(self) -> list[str]:
        """As they are printed."""
        outcome = self.outcome
        return [
            self.trace,
            self.policy,
            f"{len(outcome.waits_s)}",
            *(f"{outcome.by_tier[tier]}" for tier in SleepTier),
            f"{outcome.prewakes}",
            f"{outcome.memory_gb_s:.0f}",
            f"{outcome.wait_s:.2f}",
            f"{outcome.wait_p99_s:.3f}",
            _ratio(outcome.memory_gb_s, self.against.memory_gb_s),
            _ratio(outcome.wait_s, self.against.wait_s),
        ]


_HEAD = [
    "trace",
    "policy",
    "requests",
    *SleepTier,
    "prewakes",
    "GB s",
    "wait s",
    "p99 s",
    "memory ratio",
    "wait ratio",
]


def compare(options: argparse.Namespace, engine: Engine) -> list[Row]:
    """Every trace under every policy."""
    duration_s = options.days * arrivals.DAY_S
    rows: list[Row] = []
    for trace in options.traces:
        # A generator of its own: a trace is the same whichever others are asked for.
        times_s = list(TRACES[trace](Random(f"{options.seed} {trace}"), duration_s))
        outcomes = {
            name: replay(times_s, make(), engine, duration_s) for name, make in _policies(options).items()
        }
        against = outcomes[_fixed_name(options.fixed[0])]
        rows += [Row(trace, name, outcome, against) for name, outcome in outcomes.items()]
    return rows


def _policies(options: argparse.Namespace) -> dict[str, Callable[[], KeepAlivePolicy]]:
    policies: dict[str, Callable[[], KeepAlivePolicy]] = {}
    for keep_alive_s in options.fixed:
        policies[_fixed_name(keep_alive_s)] = partial(FixedKeepAlive, keep_alive_s)
    for settings in options.histograms:
        policies[f"hybrid {settings.bin_s:g}/{settings.range_s:g} s"] = partial(HybridHistogram, settings)
    return policies


def _fixed_name(keep_alive_s: float) -> str:
    return f"fixed {keep_alive_s:g} s"


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, padded to be readable in a terminal too."""
    lines = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    texts = [
        "| "
        + " | ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    rule = "|".join(
        "-" * (width + 2) if column < 2 else "-" * (width + 1) + ":" for column, width in enumerate(widths)
    )
    return "\n".join([texts[0], f"|{rule}|", *texts[1:]])


def _ratio(value: float, against: float) -> str:
    return f"{value / against:.2f}" if against else "-"


def _histogram(text: str) -> tuple[float, float]:
    bin_s, _, range_s = text.partition("/")
    return float(bin_s), float(range_s)


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, Engine]:
    engine = Engine()
    parser = argparse.ArgumentParser(
        "python -m loadtest policy-sim", description="Compare keep-alive policies."
    )
    add = parser.add_argument
    add("--days", type=float, default=14.0, help="length of a trace (%(default)s)")
    add("--seed", type=int, default=1, help="of the traces (%(default)s)")
    add("--traces", nargs="+", choices=TRACES, default=list(TRACES), help="(all)")
    add(
        "--fixed", nargs="+", type=float, default=[600.0, 60.0, 3600.0], metavar="S", help="fixed keep-alives"
    )
    add(
        "--histograms",
        nargs="*",
        type=_histogram,
        default=[(60.0, 14400.0), (5.0, 1200.0)],
        metavar="BIN/RANGE",
        help="bins and ranges of hybrid histograms, seconds (60/14400 5/1200)",
    )
    add("--standard-s", type=float, default=600.0, help="the histograms' standard keep-alive (%(default)s)")
    add("--memory-gb", type=float, default=engine.memory_gb, help="of the engine (%(default)s)")
    add("--service-s", type=float, default=engine.service_s, help="time of a request (%(default)s)")
    add("--idle-pause-s", type=float, default=engine.idle_pause_s, help="from idle to paused (%(default)s)")
    add("--paused-wake-s", type=float, default=engine.paused_wake_s, help="(%(default)s)")
    add("--snapshot-wake-s", type=float, default=engine.asleep_wake_s, help="(%(default)s)")
    add("--cold-wake-s", type=float, default=30.0, help="(%(default)s)")
    add("--no-snapshots", action="store_true", help="an engine that sleeps is cold")
    add("--write", type=Path, metavar="FILE", help="write the table and its legend, in Markdown")
    options = parser.parse_args(arguments)
    try:
        options.histograms = [
            HistogramSettings(bin_s=bin_s, range_s=range_s, standard_keep_alive_s=options.standard_s)
            for bin_s, range_s in options.histograms
        ]
        for keep_alive_s in options.fixed:
            FixedKeepAlive(keep_alive_s)
    except ValueError as error:
        parser.error(str(error))
    return options, Engine(
        memory_gb=options.memory_gb,
        service_s=options.service_s,
        idle_pause_s=options.idle_pause_s,
        paused_wake_s=options.paused_wake_s,
        asleep_wake_s=options.cold_wake_s if options.no_snapshots else options.snapshot_wake_s,
        asleep=SleepTier.COLD if options.no_snapshots else SleepTier.SNAPSHOT,
    )


def _told(options: argparse.Namespace, engine: Engine) -> str:
    lines = (
        f"The engine takes {engine.memory_gb:g} GB and {engine.service_s:g} s a request, is paused after "
        f"{engine.idle_pause_s:g} s, and wakes in {engine.paused_wake_s:g} s when paused and in "
        f"{engine.asleep_wake_s:g} s when it is {_ASLEEP_AS[engine.asleep]}. Each trace lasts "
        f"{options.days:g} days."
    )
    return textwrap.fill(lines, 110)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options, engine = _options(arguments)
    text = table(compare(options, engine))
    print(text)
    if options.write is not None:
        command = shlex.join(["python", "-m", "loadtest", "policy-sim", *arguments])
        options.write.parent.mkdir(parents=True, exist_ok=True)
        summary = _told(options, engine)
        options.write.write_text(
            f"# Keep-alive policies\n\n    {command}\n\n{_LEGEND}\n\n{summary}\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
