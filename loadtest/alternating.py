"""Several gateways measured in turn, over several rounds in alternating order, in front of one engine."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from loadtest.histogram import Histogram
from loadtest.measure import Load, Measured, Series, measure
from loadtest.processes import NotReady
from loadtest.report import Progress
from loadtest.targets import Engine, Target

_REST_S = 0.5

Figure = Callable[[Measured], float]
"""A number of a measurement."""


def per_second(measured: Measured) -> float:
    """Good answers."""
    return measured.run.per_second


def cpu_us(measured: Measured) -> float:
    """Microseconds of CPU for each good answer."""
    return measured.cpu_us


def p50_ms(measured: Measured) -> float:
    """Milliseconds until half of the answers were whole."""
    return _ms(measured.run.tally.total, 50)


def ttft_ms(measured: Measured) -> float:
    """Milliseconds until half of the streams had their first token."""
    return _ms(measured.run.tally.ttft, 50)


def delay_ms(measured: Measured) -> float:
    """Milliseconds from the engine's writing of a token to its arrival that 99 % do not exceed."""
    return _ms(measured.run.tally.delay, 99)


def _ms(durations: Histogram, share: float) -> float:
    return durations.percentile(share) / 1e6 if durations.count else float("nan")


def memory_mb(measured: Measured) -> float:
    """Megabytes at most."""
    return measured.memory_bytes / 1e6


def failed(measured: Measured) -> float:
    """Requests without a good answer."""
    return float(measured.run.tally.failed)


@dataclass(slots=True)
class Results:
    """What was measured, by gateway and load; a gateway that failed has its reason instead."""

    measured: dict[tuple[str, str], list[Measured]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    loops_ms: list[float] = field(default_factory=list)
    """CPU that one and the same loop of Python took after each measurement."""

    def speed(self) -> str:
        """A sentence on how constant the machine was: figures of CPU go up and down with its speed."""
        if not self.loops_ms:
            return ""
        low, high = min(self.loops_ms), max(self.loops_ms)
        return (
            "Between the measurements one and the same loop of Python took "
            f"{low:.1f} to {high:.1f} ms of CPU, {median(self.loops_ms):.1f} at the median: so much does the "
            "speed of this machine's cores change, and each figure of CPU with it."
        )

    def series(self, target: str, load: Load, figure: Figure) -> Series | None:
        """A figure of each round; None if there is none."""
        values = self.measured.get((target, load.name), [])
        return Series(tuple(figure(value) for value in values)) if values else None

    def median(self, target: str, load: Load, figure: Figure) -> float:
        """The median of the rounds; not a number if there is none."""
        series = self.series(target, load, figure)
        return series.median if series is not None else float("nan")

    def told(self, target: str, load: Load, figure: Figure, digits: int = 0) -> str:
        """For a table."""
        series = self.series(target, load, figure)
        return series.told(digits) if series is not None else "–"

    def summary(self) -> list[dict[str, object]]:
        """For the JSON: every single measurement."""
        return [measurement.summary() for rounds in self.measured.values() for measurement in rounds]


async def alternate(
    engine: Engine,
    targets: Sequence[Target],
    loads: Sequence[Load],
    *,
    rounds: int,
    seconds: float,
    progress: Progress,
    warm_up_s: float = 1.0,
) -> Results:
    """Start every gateway again in each round, in turn, and put all loads on it; every other round backwards.

    A gateway that does not start is not tried again.
    """
    results = Results()
    for number in range(rounds):
        for target in targets if number % 2 == 0 else reversed(targets):
            if target.name in results.failed:
                continue
            try:
                await _one(engine, target, loads, results, (seconds, warm_up_s), progress)
            except (NotReady, OSError, TimeoutError) as error:
                results.failed[target.name] = str(error) or type(error).__name__
    return results


async def _one(
    engine: Engine,
    target: Target,
    loads: Sequence[Load],
    results: Results,
    times: tuple[float, float],
    progress: Progress,
) -> None:
    with tempfile.TemporaryDirectory(prefix=f"load-{target.name}-") as folder:
        progress.step(f"{target.name}: start")
        with target.start(engine, Path(folder)) as running:
            for load in loads:
                progress.step(f"{target.name}: {load.name}")
                measured = await measure(running, load, seconds=times[0], warm_up_s=times[1])
                results.measured.setdefault((target.name, load.name), []).append(measured)
                results.loops_ms.append(_loop_ms())
                await asyncio.sleep(_REST_S)


def steps(targets: Sequence[Target], loads: Sequence[Load], rounds: int) -> int:
    """How many steps the progress has."""
    return rounds * len(targets) * (1 + len(loads))


def _loop_ms() -> float:
    """About 5 ms of work for one core that has nothing else to do; the shortest of three."""
    times = []
    for _ in range(3):
        began = time.process_time()
        total = 0
        for number in range(100_000):
            total += number * number % 7
        times.append(time.process_time() - began)
    return min(times) * 1000
