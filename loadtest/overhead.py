"""What Torpor adds to a plain request: CPU, latency, memory, and the time until it is ready."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from loadtest.alternating import Results, alternate, cpu_us, failed, memory_mb, p50_ms, per_second, steps
from loadtest.generator import chat, closed_loop
from loadtest.measure import ALONE, PLAIN, Series
from loadtest.processes import REPOSITORY
from loadtest.report import Goal, Panel, Progress, Report, table
from loadtest.targets import DIRECT, TORPOR, Engine, standin, with_everything_on

_SAMPLES = 20
_CHAT_MODEL = "smollm2-135m"
ABOUT = """Everything is on: key authentication, limits of requests, tokens and concurrency for project and
key, budgets, the fair queue, the ledger with its durable commits, JSON logs, metrics. Load generator, gateway
and an instant stand-in engine share the cores; one gateway process; the rounds alternate with *direct*, the
load generator on the stand-in itself, and start the gateway again. Figures are medians of the rounds, their
range behind. CPU is that of the gateway's whole process tree, for each good answer."""


def options(parser: argparse.ArgumentParser) -> None:
    """The options of this test."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--requests", type=int, default=1_000_000, help="after which memory is measured")
    parser.add_argument("--starts", type=int, default=5, help="of the gateway, timed")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models", help="of the engines asleep")


async def run(arguments: argparse.Namespace) -> Report:
    """The report."""
    targets, loads = (DIRECT, TORPOR), (PLAIN, ALONE)
    total = steps(targets, loads, arguments.rounds) + arguments.starts + _SAMPLES
    progress = Progress(total)
    with tempfile.TemporaryDirectory(prefix="load-") as name, standin(Path(name)) as engine:
        results = await alternate(
            engine,
            targets,
            loads,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            progress=progress,
        )
        memory = await memory_over(engine, arguments.requests, progress)
    starts = start_times(arguments.starts, arguments.models, progress)
    progress.over()
    return _report(results, memory, starts, arguments.requests)


async def memory_over(engine: Engine, requests: int, progress: Progress) -> list[tuple[int, float]]:
    """Megabytes of the gateway after so many requests, at 20 points of the way and before."""
    with tempfile.TemporaryDirectory(prefix="load-") as name, TORPOR.start(engine, Path(name)) as running:
        ask = chat(running.endpoint, running.model)
        points = [(0, running.child.usage().memory_bytes / 1e6)]
        each = max(1, requests // _SAMPLES)
        for number in range(1, _SAMPLES + 1):
            progress.step(f"memory: {points[-1][0]:,} of {requests:,} requests")
            await closed_loop(running.endpoint, lambda: ask, connections=32, seconds=24 * 3600, requests=each)
            points.append((number * each, running.child.usage().memory_bytes / 1e6))
        return points


def start_times(count: int, models: Path, progress: Progress) -> Series | None:
    """Seconds from the start of `torpor serve` until it is ready, with a model asleep that it has to know."""
    source = models / _CHAT_MODEL
    if not count or not source.is_dir():
        return None
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        section = f'[[models]]\nid = "{_CHAT_MODEL}"\nsource = "{source.resolve()}"\n'
        gateway = with_everything_on(Path(name), section)
        times = []
        for _ in range(count):
            progress.step("start of `torpor serve`")
            with gateway.serving() as running:
                times.append(running.ready_s)
    return Series(tuple(times))


def _report(
    results: Results, memory: list[tuple[int, float]], starts: Series | None, requests: int
) -> Report:
    added = results.median("torpor", ALONE, p50_ms) - results.median("direct", ALONE, p50_ms)
    megabytes = [point[1] for point in memory]
    middle = megabytes[len(megabytes) // 2]
    goals = [
        Goal("plain requests at 32", results.median("torpor", PLAIN, per_second), "/s", 6000, at_least=True),
        Goal("CPU of each", results.median("torpor", PLAIN, cpu_us), "us", 160),
        Goal("p50 added at 1 connection", added, "ms", 0.5),
        Goal(f"memory after {requests:,} requests", megabytes[-1], "MB", 150),
        Goal("memory that their second half added", megabytes[-1] - middle, "MB", 3),
    ]
    if starts is not None:
        goals.append(Goal("`torpor serve` to ready, engines asleep", starts.median, "s", 1))
    head = [
        "",
        "requests/s at 32",
        "CPU us each",
        "p50 ms",
        "requests/s at 1",
        "p50 ms",
        "memory MB",
        "failed",
    ]
    rows = [
        [
            name,
            results.told(name, PLAIN, per_second),
            results.told(name, PLAIN, cpu_us) if name != "direct" else "",
            results.told(name, PLAIN, p50_ms, 2),
            results.told(name, ALONE, per_second),
            results.told(name, ALONE, p50_ms, 3),
            results.told(name, PLAIN, memory_mb) if name != "direct" else "",
            results.told(name, PLAIN, failed),
        ]
        for name in ("direct", "torpor")
    ]
    data: dict[str, Any] = {
        "measurements": results.summary(),
        "memory_mb": memory,
        "ready_s": starts.values if starts is not None else [],
        "failed": results.failed,
    }
    panels = [
        Panel(
            "memory, MB", {"torpor": megabytes}, x=[float(point[0]) for point in memory], x_label="requests"
        ),
        Panel(
            "plain requests/s at 32 connections",
            {name: [results.median(name, PLAIN, per_second)] for name in ("torpor", "direct")},
        ),
    ]
    return Report(
        name="overhead",
        title="What a plain request costs",
        about=ABOUT,
        sections=[table(head, rows), results.speed()],
        data=data,
        panels=panels,
        goals=goals,
    )
