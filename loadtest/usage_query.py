"""What a usage query takes over millions of real entries: a month by day, grouped by project and model.

    python -m loadtest usage-query --help

The entries go through the ledger's own writer, rollups included, so the database is what a gateway would
have made of that many requests. The reports are those behind `client.admin.organization.usage`.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from loadtest.sections import circumstances, command, write_section
from metering.ledger.entries import Settlement, Write
from metering.ledger.journal import Row
from metering.ledger.sqlite_writer import SqliteWriter
from metering.prices import Price
from metering.reports.costs import CostReports, parse_costs
from metering.reports.usage import UsageKind, UsageReports, parse_query
from metering.tables import ledger_entries, metadata, usage_days, usage_hours
from metering.types import Attempt, Operation, Outcome, Timings, Usage

DAY = 86_400
FIRST = 1_767_225_600
"""2026-01-01T00:00:00Z."""
DAYS = 31
WANTED_MS = 200.0
PROJECTS, KEYS, USERS, MODELS = 20, 100, 2_000, 5
PRICE = Price(100, 50, 200)
_BATCH = 5_000
ABOUT = """Reports as `client.admin.organization.usage` asks for them, without HTTP, of the
organization that has nine tenths of the entries, each asked several times. Wanted: the first in 200 ms."""
ORGANIZATION = "org-1"


def _rows(first: int, count: int, total: int, chance: random.Random) -> list[Row]:
    """In the order of their start, evenly over the month; a tenth is another organization's."""
    rows = []
    for number in range(first, first + count):
        at = FIRST + number * DAYS * DAY / total
        project = int(PROJECTS * chance.random() ** 2)
        usage = Usage(chance.randrange(20, 2_000), chance.randrange(0, 20), chance.randrange(1, 400))
        write = Write(
            Attempt(
                id=f"att_{int(at * 1000):012x}{number:020x}",
                request_id=f"req_{number:032x}",
                organization_id=ORGANIZATION if chance.random() < 0.9 else "org-2",
                project_id=f"proj_{project}",
                api_key_id=f"key_{project}_{chance.randrange(KEYS // PROJECTS)}",
                user_id=f"user_{int(USERS * chance.random() ** 3)}" if chance.random() < 0.5 else None,
                model=f"model-{chance.randrange(MODELS)}",
                operation=Operation.CHAT,
                started_at=at,
                batch=chance.random() < 0.1,
            ),
            usage,
            Settlement(
                Outcome.COMPLETED,
                int(at * 1000) + 900,
                Timings(tier="hot", queue_ms=1.0, ttft_ms=30.0, total_ms=900.0),
                200,
                PRICE.costs(usage, 899),
            ),
        )
        rows.append(write.row("own_0"))
    return rows


async def _fill(path: Path, database: AsyncEngine, total: int) -> None:
    """Goes on where an earlier run has ended: a batch is one transaction."""
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
        done = await connection.scalar(select(func.count()).select_from(ledger_entries)) or 0
    writer = SqliteWriter(str(path))
    begun = time.monotonic()
    for first in range(done, total, _BATCH):
        await writer.store(_rows(first, min(_BATCH, total - first), total, random.Random(first)))
        if first % 500_000 == 0 and first:
            print(f"{first:,} entries, {time.monotonic() - begun:.0f} s", file=sys.stderr)


_SPAN = [("start_time", str(FIRST)), ("end_time", str(FIRST + DAYS * DAY)), ("limit", "31")]
_ODD = [("start_time", str(FIRST + 12_345)), ("end_time", str(FIRST + DAYS * DAY - 4_321)), ("limit", "31")]
_BY = [("group_by", "project_id"), ("group_by", "model")]
QUERIES = (
    ("a month by day, by project and model", _SPAN + _BY),
    ("the same, from and to odd seconds", _ODD + _BY),
    ("a month by day, in one sum", _SPAN),
    (
        "a month by day, of one project, by key",
        [*_SPAN, ("project_ids", "proj_3"), ("group_by", "api_key_id")],
    ),
    ("a month by day, of one user", [*_SPAN, ("user_ids", "user_7")]),
    ("a month by day, by user", [*_SPAN, ("group_by", "user_id")]),
    (
        "a week by hour, by model",
        [*_SPAN[:1], ("bucket_width", "1h"), ("limit", "168"), ("group_by", "model")],
    ),
    (
        "an hour by minute, by model",
        [*_SPAN[:1], ("bucket_width", "1m"), ("limit", "60"), ("group_by", "model")],
    ),
)


async def _measure(database: AsyncEngine, repeats: int) -> list[tuple[str, list[float], int]]:
    reports, costs = UsageReports(database), CostReports(database)
    durations = []
    for name, params in QUERIES:
        query = parse_query(UsageKind.COMPLETIONS, ORGANIZATION, params)
        took, requests = [], 0
        for _ in range(repeats):
            begun = time.perf_counter()
            answer = await reports.report(query)
            took.append((time.perf_counter() - begun) * 1e3)
            requests = sum(
                result["num_model_requests"] for bucket in answer["data"] for result in bucket["results"]
            )
        durations.append((name, took, requests))
    query_of_costs = parse_costs(
        ORGANIZATION, [*_SPAN, ("group_by", "project_id"), ("group_by", "line_item")]
    )
    took = []
    for _ in range(repeats):
        begun = time.perf_counter()
        await costs.report(query_of_costs)
        took.append((time.perf_counter() - begun) * 1e3)
    return [*durations, ("costs of a month, by project and line item", took, 0)]


async def _run(arguments: argparse.Namespace, folder: Path) -> int:
    path = arguments.database or folder / "torpor.db"
    database = create_async_engine(f"sqlite+aiosqlite:///{path}")
    try:
        await _fill(path, database, arguments.entries)
        load = circumstances()
        async with database.connect() as connection:
            sizes = [
                await connection.scalar(select(func.count()).select_from(table)) or 0
                for table in (ledger_entries, usage_hours, usage_days)
            ]
            own_entries = await connection.scalar(
                select(func.count()).where(ledger_entries.c.organization_id == ORGANIZATION)
            )
        figures = await _measure(database, arguments.repeats)
    finally:
        await database.dispose()
    size = "{:,} entries, {:,} rows by hour, {:,} by day; {:.0f} MiB.".format(
        *sizes, path.stat().st_size / 2**20
    )
    lines = [f"| {name} | {statistics.median(took):.1f} | {max(took):.1f} |" for name, took, _ in figures]
    table = "\n".join(["| query | median ms | slowest ms |\n|---|--:|--:|", *lines])
    print(f"{size}\n\n{table}")
    if arguments.write:
        text = f"{command('loadtest usage-query')}\n\n{ABOUT}\n{load}\n\n{size}\n\n{table}"
        write_section(arguments.write, "Usage queries", text)
    whole = {
        requests for name, _, requests in figures if name in (QUERIES[0][0], QUERIES[2][0], QUERIES[5][0])
    }
    if whole != {own_entries}:
        print(f"the sums differ: {whole}, and {own_entries} entries", file=sys.stderr)
        return 1
    return 0 if statistics.median(figures[0][1]) <= WANTED_MS else 1


def main() -> int:
    """Print the table; exit code 1 where the first query is too slow, or any sum is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--database", type=Path, help="kept, and filled up where it exists")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="for a database that is not kept")
    parser.add_argument("--write", type=Path, help="the page of benchmarks")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="usage-") as folder:
        return asyncio.run(_run(arguments, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
