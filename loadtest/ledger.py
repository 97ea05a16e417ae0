"""What the durable ledger costs: requests opened and settled in a file of SQLite, with nothing else around.

    python -m loadtest ledger --help

Each request is opened, waits until that is durable, and is settled, and waits for that, as the gateway does
it for a stream. All that CPU time is counted: event loop, journal, database, rollups, prices. A run ends when
the database has everything.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvloop
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from loadtest.sections import circumstances, command, write_section
from metering.ledger.service import Ledger, open_ledger
from metering.prices import Price, PriceEntry, PriceList
from metering.tables import ledger_entries, metadata, usage_days
from metering.types import Attempt, Operation, Outcome, Timings, Usage, new_attempt_id

WANTED_PER_S = 8_000.0
WANTED_CPU_US = 40.0
WANTED_P99_MS = 5.0
WANTED_GROWTH_MIB = 16.0
MODELS = 4
PRICES = PriceList(
    [PriceEntry(model=f"model-{number}", price=Price(100, 50, 200)) for number in range(MODELS)]
)
_MIB = 1024 * 1024
ABOUT = """Requests that are opened and settled, each waiting for both to be durable, in one process with
nothing else. CPU time is of the whole process, the making of the requests included. *p50* and *p99*: what a
request waited for the ledger, opening and settling together; where the load is saturated, it waits for the
others. *ledger exact*: at the end each request is in the table once, completed, and the rollup has as many.
Wanted: 8,000 requests/s, 40 us, 5 ms at the 99th percentile at 500/s, no growth."""


def _attempt(number: int) -> Attempt:
    return Attempt(
        id=new_attempt_id(),
        request_id=f"req_{number:032x}",
        organization_id=f"org-{number % 10}",
        project_id=f"proj_{number % 50}",
        api_key_id=f"key_{number % 200}",
        user_id=None,
        model=f"model-{number % MODELS}",
        operation=Operation.CHAT,
        started_at=time.time(),
    )


async def _one(ledger: Ledger, number: int) -> None:
    meter = ledger.open(_attempt(number))
    await meter.opened()
    timings = Timings(tier="hot", queue_ms=0.1, wake_ms=0.0, ttft_ms=20.0, total_ms=250.0)
    await meter.settle(Outcome.COMPLETED, Usage(200, 100, 64), timings, 200)


@asynccontextmanager
async def _opened(folder: Path) -> AsyncIterator[tuple[Ledger, AsyncEngine]]:
    url = f"sqlite+aiosqlite:///{folder / 'torpor.db'}"
    database = create_async_engine(url)
    try:
        async with database.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with open_ledger(url, database, folder / "ledger", PRICES) as ledger:
            yield ledger, database
    finally:
        await database.dispose()


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run."""

    name: str
    requests: int
    seconds: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    growth_mib: float
    exact: bool

    def line(self) -> str:
        """A row of the table."""
        exact = "yes" if self.exact else "NO"
        return (
            f"| {self.name} | {self.requests:,} | {self.requests / self.seconds:,.0f} | {self.cpu_us:.1f} "
            f"| {self.p50_ms:.2f} | {self.p99_ms:.2f} | {self.growth_mib:+.1f} | {exact} |"
        )


HEAD = (
    "| load | requests | requests/s | CPU us a request | p50 ms | p99 ms | memory MiB | ledger exact |\n"
    "|---|--:|--:|--:|--:|--:|--:|---|"
)


async def saturated(folder: Path, requests: int, concurrent: int) -> Figures:
    """As many as there can be, with so many under way."""
    async with _opened(folder) as (ledger, database):
        numbers = iter(range(requests))
        waits = array("d")

        async def work() -> None:
            for number in numbers:
                begun = time.perf_counter()
                await _one(ledger, number)
                waits.append(time.perf_counter() - begun)

        await _some(ledger, 2_000)
        begun, cpu, memory = time.perf_counter(), time.process_time(), _resident()
        await asyncio.gather(*(work() for _ in range(concurrent)))
        await _drained(ledger)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        growth = _resident() - memory
        exact = await _exact(database, requests + 2_000)
    name = f"saturated, {concurrent} under way"
    return _figures(name, requests, seconds, cpu, waits, growth, exact)


async def paced(folder: Path, requests: int, per_second: float) -> Figures:
    """At a rate, whether the ledger keeps up or not."""
    async with _opened(folder) as (ledger, database):
        waits = array("d")

        async def one(number: int, due: float) -> None:
            await _one(ledger, number)
            waits.append(time.perf_counter() - due)

        await _some(ledger, 500)
        cpu, memory = time.process_time(), _resident()
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(requests):
                due = begun + number / per_second
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(number, time.perf_counter()))
        await _drained(ledger)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        growth = _resident() - memory
        exact = await _exact(database, requests + 500)
    return _figures(f"{per_second:,.0f}/s", requests, seconds, cpu, waits, growth, exact)


def _figures(
    name: str, requests: int, seconds: float, cpu: float, waits: "array[float]", growth: int, exact: bool
) -> Figures:
    ordered = sorted(waits)
    return Figures(
        name=name,
        requests=requests,
        seconds=seconds,
        cpu_us=cpu / requests * 1e6,
        p50_ms=statistics.median(ordered) * 1e3,
        p99_ms=ordered[int(len(ordered) * 0.99)] * 1e3,
        growth_mib=(growth - 8 * len(waits)) / _MIB,
        exact=exact,
    )


async def _some(ledger: Ledger, requests: int) -> None:
    """What grows once, such as SQLite's cache, is not the measurement."""
    await asyncio.gather(*(_one(ledger, number) for number in range(requests)))
    await _drained(ledger)


async def _drained(ledger: Ledger) -> None:
    deadline = time.monotonic() + 60
    while not await ledger.applied():
        if time.monotonic() > deadline:
            raise TimeoutError("the database does not take what the journal has")


async def _exact(database: AsyncEngine, requests: int) -> bool:
    """Whether each request is there once, settled, and the rollup has the same."""
    async with database.connect() as connection:
        settled = await connection.scalar(
            select(func.count()).select_from(ledger_entries).where(ledger_entries.c.outcome == "completed")
        )
        counted = await connection.scalar(select(func.sum(usage_days.c.requests)))
    return bool(settled == counted == requests)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _run(arguments: argparse.Namespace) -> list[Figures]:
    figures = []
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="ledger-") as name:
        loads: tuple[tuple[int, Callable[[Path, int], Awaitable[Figures]]], ...] = (
            (arguments.requests, partial(saturated, concurrent=64)),
            (arguments.requests, partial(saturated, concurrent=256)),
            (arguments.paced, partial(paced, per_second=500.0)),
            (arguments.memory, partial(saturated, concurrent=256)),
        )
        for index, (requests, load) in enumerate(loads):
            if requests:
                folder = Path(name) / str(index)
                folder.mkdir()
                figures.append(await load(folder, requests))
    return figures


def main() -> int:
    """Print the table; exit code 1 where a figure is not what is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000, help="of each saturated run")
    parser.add_argument("--paced", type=int, default=10_000, help="at 500 a second")
    parser.add_argument(
        "--memory", type=int, default=1_000_000, help="of the run whose memory is watched; 0: none"
    )
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to be measured")
    parser.add_argument("--write", type=Path, help="the page of benchmarks")
    arguments = parser.parse_args()
    load = circumstances()
    figures = uvloop.run(_run(arguments))
    table = "\n".join([HEAD, *[figure.line() for figure in figures]])
    print(table)
    if arguments.write:
        text = f"{command('loadtest ledger')}\n\n{ABOUT}\n{load}\n\n{table}"
        write_section(arguments.write, "The ledger", text)
    full = [figure for figure in figures if figure.name.startswith("saturated")]
    slow = [figure for figure in figures if not figure.name.startswith("saturated")]
    met = (
        all(figure.exact for figure in figures)
        and all(figure.requests / figure.seconds >= WANTED_PER_S for figure in full)
        and all(figure.cpu_us <= WANTED_CPU_US for figure in full)
        and all(figure.p99_ms <= WANTED_P99_MS for figure in slow)
        and all(figure.growth_mib <= WANTED_GROWTH_MIB for figure in figures)
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
