"""What it costs to let a request in: authentication, limits, budget and their settlement, in CPU time.

    python -m loadtest admission --help

No engine and no HTTP: the parts of tenants/ alone, as the gateway calls them for each request, in one thread.
Every project has limits for the model, every key limits of its own and a spend limit above it: each request
is held to eleven rates, two ceilings and two budgets.
"""

import argparse
import asyncio
import random
import shlex
import statistics
import sys
import tempfile
import textwrap
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tenants.errors import RateLimitExceeded
from tenants.limits.admission import Admissions
from tenants.limits.budgets import Budgets
from tenants.limits.rate_limit_store import LimitStore
from tenants.limits.rate_limits import LimitBook, RateLimit
from tenants.queueing.fair_queue import FairQueue, Ticket, token_cost
from tenants.queueing.turnstile import Turnstile
from tenants.secrets import digest, new_secret
from tenants.store import Tenants
from tenants.tables import api_keys, metadata, organizations, projects, subject_limits
from tenants.types import KeyKind, ProjectPrincipal

PEPPER = b"p" * 32
MODEL = "model"
STEPS = 8
"""How often a request tells what has been generated."""
INPUT, OUTPUT = 40, 64
PRICE = 10**6
WANTED_US = 50.0
WANTED_MB = 8.0
SLOTS = 32
PATIENCE_S = 60.0
_PHASES = ("authenticate", "admit", "turn", "output", "settle", "headers")
_KEY_LIMIT = {
    "requests_per_minute": 600,
    "tokens_per_minute": 60_000,
    "concurrent_requests": 100,
}
_PROJECT_LIMIT = {"concurrent_requests": 1_000}
_MODEL_LIMIT = RateLimit(requests_per_minute=6_000, tokens_per_minute=600_000, requests_per_day=1_000_000)


@dataclass(slots=True)
class VirtualClock:
    """Time goes on by so many nanoseconds with each request."""

    step_ns: int
    now_ns: int = 0

    def __call__(self) -> int:
        return self.now_ns


@dataclass(slots=True)
class Site:
    """The parts that are measured, and the secrets of all keys."""

    store: Tenants
    admissions: Admissions
    turnstile: Turnstile
    clock: VirtualClock
    secrets: list[str]


@dataclass(slots=True)
class Result:
    """CPU time of each request by phase, in nanoseconds, and what was in memory on the way.

    The ``marks`` are clock readings, before and after each phase, in memory that is taken beforehand: what
    grows in the run is then not the measurement.
    """

    marks: "list[array[int]]" = field(default_factory=list)
    taken: int = 0
    refused: list[int] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, samples: int) -> Self:
        """With room for so many samples."""
        return cls([array("q", bytes(8 * samples)) for _ in range(len(_PHASES) + 1)])

    def take(self, readings: Sequence[int]) -> None:
        """The readings of one request; once there is no more room, nothing."""
        if self.taken < len(self.marks[0]):
            for column, reading in zip(self.marks, readings, strict=True):
                column[self.taken] = reading
            self.taken += 1

    def between(self, begin: int, end: int) -> list[int]:
        """The time from one mark to another, of each request."""
        columns = self.marks[begin][: self.taken], self.marks[end][: self.taken]
        return [until - since for since, until in zip(*columns, strict=True)]


@asynccontextmanager
async def site(keys: int, of_projects: int, clock: VirtualClock) -> AsyncIterator[Site]:
    """A database with so many keys in so many projects, every key seen once."""
    with tempfile.TemporaryDirectory(prefix="torpor-") as folder:
        database = create_async_engine(f"sqlite+aiosqlite:///{folder}/torpor.db")
        try:
            secrets = await _fill(database, keys, of_projects)
            book, budgets = LimitBook(_MODEL_LIMIT), Budgets()
            await LimitStore(database, book).load()
            for number in range(of_projects):
                budgets.set_limit(f"proj_{number}", 10**9)
            store = Tenants.of(database, PEPPER)
            for secret in secrets:
                await store.credentials.authenticate(secret)
            turnstile = Turnstile(FairQueue(), slots=SLOTS)
            await turnstile.enter(Ticket(project_id="proj_0", cost=1.0))
            yield Site(store, Admissions(book, budgets, clock_ns=clock), turnstile, clock, secrets)
        finally:
            await database.dispose()


async def _fill(database: AsyncEngine, keys: int, of_projects: int) -> list[str]:
    secrets = [new_secret(KeyKind.PROJECT) for _ in range(keys)]
    organization = {"id": "org-1", "slug": "acme", "name": "acme", "created_ms": 1}
    project_rows = [
        {"id": f"proj_{number}", "organization_id": "org-1", "name": "web", "created_ms": 1}
        for number in range(of_projects)
    ]
    key_rows = [
        {
            "id": f"key_{number}",
            "kind": "project",
            "organization_id": "org-1",
            "project_id": f"proj_{number % of_projects}",
            "name": "key",
            "prefix": "sk-",
            "digest": digest(PEPPER, secret),
            "owner_user_id": f"user-{number}",
            "scopes": "all",
            "created_ms": 1,
        }
        for number, secret in enumerate(secrets)
    ]
    limit_rows = [
        {"id": f"lim_{number}", "organization_id": "org-1", "subject_type": "key",
         "subject_id": f"key_{number}", "created_ms": 1, **_KEY_LIMIT}
        for number in range(keys)
    ]  # fmt: skip
    project_limit_rows = [
        {"id": f"lim_p{number}", "organization_id": "org-1", "subject_type": "project",
         "subject_id": f"proj_{number}", "created_ms": 1, **_PROJECT_LIMIT}
        for number in range(of_projects)
    ]  # fmt: skip
    async with database.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(organizations).values(organization))
        await connection.execute(insert(projects), project_rows)
        await connection.execute(insert(api_keys), key_rows)
        await connection.execute(insert(subject_limits), limit_rows)
        await connection.execute(insert(subject_limits), project_limit_rows)
    return secrets


async def measure(site: Site, requests: int, samples: int) -> Result:
    """Admit so many requests of keys chosen at random; of ``samples`` of them the CPU time is taken."""
    result, choose = Result.of(samples), random.Random(7)
    every, step = max(1, requests // samples), max(1, requests // 10)
    for number in range(requests):
        secret = site.secrets[choose.randrange(len(site.secrets))]
        site.clock.now_ns += site.clock.step_ns
        if number % every == 0:
            await _timed(site, secret, result)
        else:
            await _plain(site, secret)
        if number % step == step - 1:
            result.memory_mb.append(_resident_mb())
            result.entries.append(len(site.admissions))
    return result


async def _plain(site: Site, secret: str) -> None:
    principal = await _principal(site, secret)
    admission = site.admissions.admit(principal, MODEL, INPUT, cost=(INPUT + OUTPUT) * PRICE)
    turn = await site.turnstile.enter(_ticket(principal), PATIENCE_S)
    for step in range(1, STEPS + 1):
        admission.generated(OUTPUT * step // STEPS)
    admission.settle(INPUT, OUTPUT, (INPUT + OUTPUT) * PRICE)
    turn.end(token_cost(INPUT, OUTPUT))
    site.admissions.standings(principal, MODEL)


async def _principal(site: Site, secret: str) -> ProjectPrincipal:
    principal = await site.store.credentials.authenticate(secret)
    assert isinstance(principal, ProjectPrincipal)
    return principal


def _ticket(principal: ProjectPrincipal) -> Ticket:
    return Ticket(project_id=principal.project_id, cost=token_cost(INPUT, OUTPUT))


async def _timed(
    site: Site, secret: str, result: Result, now: Callable[[], int] = time.thread_time_ns
) -> None:
    marks = [now()]
    principal = await _principal(site, secret)
    marks.append(now())
    admission = site.admissions.admit(principal, MODEL, INPUT, cost=(INPUT + OUTPUT) * PRICE)
    marks.append(now())
    turn = await site.turnstile.enter(_ticket(principal), PATIENCE_S)
    marks.append(now())
    for step in range(1, STEPS + 1):
        admission.generated(OUTPUT * step // STEPS)
    marks.append(now())
    admission.settle(INPUT, OUTPUT, (INPUT + OUTPUT) * PRICE)
    turn.end(token_cost(INPUT, OUTPUT))
    marks.append(now())
    site.admissions.standings(principal, MODEL)
    marks.append(now())
    result.take(marks)


async def measure_refusals(site: Site, samples: int, result: Result) -> None:
    """What a request costs that is refused, the tokens of its key being used up."""
    secret = site.secrets[0]
    principal = await _principal(site, secret)
    site.clock.now_ns += 10**15
    admission = site.admissions.admit(principal, MODEL, _KEY_LIMIT["tokens_per_minute"])
    for _ in range(samples):
        begin = time.thread_time_ns()
        await site.store.credentials.authenticate(secret)
        try:
            site.admissions.admit(principal, MODEL, INPUT)
        except RateLimitExceeded:
            result.refused.append(time.thread_time_ns() - begin)
    admission.settle(0, 0, 0)


def _resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell how much memory a process takes")


def table(result: Result) -> str:
    """The figures in Markdown."""
    totals = result.between(0, len(_PHASES))
    lines = ["| CPU of a request | median us | p95 us | p99 us |", "|---|---:|---:|---:|"]
    for name, times in (
        *[(phase, result.between(at, at + 1)) for at, phase in enumerate(_PHASES)],
        ("**all of it**", totals),
        ("refused", result.refused),
    ):  # fmt: skip
        if len(times) > 1:
            cuts = statistics.quantiles(times, n=100)
            median, p95, p99 = (
                f"{value / 1000:.1f}" for value in (statistics.median(times), cuts[94], cuts[98])
            )
            lines.append(f"| {name} | {median} | {p95} | {p99} |")
    lines += [
        "",
        "| tenths of the run | " + " | ".join(str(n + 1) for n in range(len(result.memory_mb))) + " |",
    ]
    lines.append("|---|" + "---:|" * len(result.memory_mb))
    lines.append(
        "| memory of the process, MB | "
        + " | ".join(f"{megabytes:.1f}" for megabytes in result.memory_mb)
        + " |"
    )
    lines.append(
        "| limits and counters in memory | "
        + " | ".join(str(megabytes) for megabytes in result.entries)
        + " |"
    )
    median_us = statistics.median(totals) / 1000
    grown_mb = result.memory_mb[-1] - result.memory_mb[0]
    lines += ["", "| what | reached | wanted | |", "|---|---:|---:|---|"]
    lines.append(_verdict("CPU of a request, median", median_us, WANTED_US, "us"))
    lines.append(_verdict("memory that the last nine tenths added", grown_mb, WANTED_MB, "MB"))
    return "\n".join(lines)


def _verdict(what: str, reached: float, goal: float, unit: str) -> str:
    said = "yes" if reached <= goal else "NO"
    return f"| {what} | {reached:.1f} {unit} | at most {goal:g} {unit} | {said} |"


async def run(keys: int, of_projects: int, requests: int, samples: int) -> Result:
    """The whole measurement."""
    clock = VirtualClock(step_ns=10**6)
    async with site(keys, of_projects, clock) as started_site:
        result = await measure(started_site, requests, samples)
        await measure_refusals(started_site, min(samples, 10_000), result)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--keys", type=int, default=10_000, help="(%(default)s)")
    add("--projects", type=int, default=1_000, help="(%(default)s)")
    add("--requests", type=int, default=1_000_000, help="(%(default)s)")
    add("--samples", type=int, default=100_000, help="of how many the CPU time is taken (%(default)s)")
    add("--write", type=Path, metavar="FILE", help="write the table and its legend, in Markdown")
    options = parser.parse_args(arguments)
    result = asyncio.run(run(options.keys, options.projects, options.requests, options.samples))
    text = table(result)
    print(text)
    if options.write is not None:
        command = shlex.join(["python", "-m", "loadtest", "admission", *arguments])
        legend = _legend(options)
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(f"# Letting requests in\n\n    {command}\n\n{legend}\n\n{text}\n")


def _legend(options: argparse.Namespace) -> str:
    legend = (
        f"{options.keys:,} keys in {options.projects:,} projects, {options.requests:,} requests by keys "
        "chosen at random, a thousand a second of the limiter's clock, in one thread, without HTTP. "
        "Each request is held to five rates (requests a minute and a day and tokens a minute of the project "
        "for the model, requests and tokens a minute of the key), two ceilings of concurrent requests and "
        "two budgets. *authenticate*: the key, from memory. *turn*: a free slot of the fair queue. "
        f"*output*: what has been generated is charged in {STEPS} steps. *headers*: the tightest "
        "limits for the answer. *refused*: authentication and a refusal. Times are of the CPU clock, "
        "its reading included."
    )
    return textwrap.fill(legend, 110)


if __name__ == "__main__":
    main()
