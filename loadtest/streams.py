"""What Torpor adds to streams: CPU, delay of a token, memory of each, and how fast a client's end is told."""

import argparse
import tempfile
from pathlib import Path

from loadtest.alternating import (
    Results,
    alternate,
    cpu_us,
    delay_ms,
    failed,
    per_second,
    steps,
    ttft_ms,
)
from loadtest.many import PACE_MS, Freed, OpenStreams, disconnect, hold_open
from loadtest.measure import FAST, PACED, STREAMS
from loadtest.report import Goal, Panel, Progress, Report, figure, table
from loadtest.targets import DIRECT, TORPOR, Engine, Target, standin

_FREED_MS = 50
ABOUT = """Everything is on, as in [overhead](overhead.md); the rounds alternate with *direct*. A paced engine
writes the time into each token; *delay* is the time from its writing to its arrival at the client:
what a token has to bear beyond the engine. Instant: all 64 chunks are written one after the other, each in a
write of its own. CPU is that of the gateway's whole process tree, for each good stream."""


def options(parser: argparse.ArgumentParser) -> None:
    """The options of this test."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--open", type=int, default=2000, help="streams that are open at a time")
    parser.add_argument("--ramp", type=float, default=10, help="seconds in which they are opened")
    parser.add_argument("--hold", type=float, default=15, help="seconds that all of them are open")
    parser.add_argument("--disconnects", type=int, default=10, help="of each kind")


async def run(arguments: argparse.Namespace) -> Report:
    """The report."""
    targets, loads = (DIRECT, TORPOR), (STREAMS, PACED, FAST)
    progress = Progress(steps(targets, loads, arguments.rounds) + 3)
    with tempfile.TemporaryDirectory(prefix="load-") as name, standin(Path(name)) as engine:
        results = await alternate(
            engine,
            targets,
            loads,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            progress=progress,
        )
        held = {}
        for target in targets:
            progress.step(f"{target.name}: {arguments.open:,} open streams")
            held[target.name] = await _held(engine, target, arguments)
        progress.step("torpor: disconnects")
        freed = await _freed(engine, arguments.disconnects)
    progress.over()
    return _report(results, held, freed)


async def _held(engine: Engine, target: Target, arguments: argparse.Namespace) -> OpenStreams:
    with tempfile.TemporaryDirectory(prefix="load-") as name, target.start(engine, Path(name)) as running:
        await hold_open(running, streams=min(50, arguments.open), ramp_s=0.5, hold_s=0.5)
        return await hold_open(running, streams=arguments.open, ramp_s=arguments.ramp, hold_s=arguments.hold)


async def _freed(engine: Engine, times: int) -> list[Freed]:
    with tempfile.TemporaryDirectory(prefix="load-") as name, TORPOR.start(engine, Path(name)) as running:
        return await disconnect(running, engine, times)


def _report(results: Results, held: dict[str, OpenStreams], freed: list[Freed]) -> Report:
    torpor, direct = held["torpor"], held["direct"]
    added = results.median("torpor", FAST, delay_ms) - results.median("direct", FAST, delay_ms)
    many_ms = (torpor.held_tokens.percentile(99) - direct.held_tokens.percentile(99)) / 1e6
    in_time = sum(1 for stream in freed if stream.seconds is not None and stream.seconds * 1000 <= _FREED_MS)
    count = f"{torpor.count:,} streams"
    goals = [
        Goal(
            "streams at 64, instant", results.median("torpor", STREAMS, per_second), "/s", 1750, at_least=True
        ),
        Goal("CPU of each", results.median("torpor", STREAMS, cpu_us), "us", 600),
        Goal(
            "streams at 64, paced at 20 ms: CPU of each", results.median("torpor", PACED, cpu_us), "us", 2000
        ),
        Goal("TTFT p50 of these", results.median("torpor", PACED, ttft_ms), "ms", 2),
        Goal("16 streams, a token each 2 ms: p99 added to a token", added, "ms", 2),
        Goal(f"{count}, a token each {PACE_MS:g} ms: dropped", torpor.dropped, "", 0),
        Goal("p99 added to a token of these", many_ms, "ms", 20),
        Goal("memory for each of these", torpor.memory_bytes / torpor.count / 1000, "kB", 40),
        Goal(
            f"disconnections after which the engine was free within {_FREED_MS} ms, of {len(freed)}",
            in_time,
            "",
            len(freed),
            at_least=True,
        ),
    ]
    names = ("direct", "torpor")
    head = ["", "streams/s", "CPU us each", "paced: CPU us each", "TTFT p50 ms", "delay p99 ms",
            "each 2 ms: delay p99 ms", "failed"]  # fmt: skip
    rows = [
        [
            name,
            results.told(name, STREAMS, per_second),
            results.told(name, STREAMS, cpu_us) if name != "direct" else "",
            results.told(name, PACED, cpu_us) if name != "direct" else "",
            results.told(name, PACED, ttft_ms, 2),
            results.told(name, PACED, delay_ms, 2),
            results.told(name, FAST, delay_ms, 2),
            figure(sum(results.median(name, load, failed) for load in (STREAMS, PACED, FAST))),
        ]
        for name in names
    ]
    return Report(
        name="streams",
        title="What a stream costs",
        about=ABOUT,
        sections=[table(head, rows), results.speed(), _held_table(held), _freed_table(freed)],
        data={
            "measurements": results.summary(),
            "open": {
                name: {
                    "streams": stream.count,
                    "dropped": stream.dropped,
                    "errors": dict(stream.tally.errors),
                    "delay": stream.held_tokens.summary(),
                    "memory_bytes": stream.memory_bytes,
                    "cpu_share": stream.cpu_share,
                }
                for name, stream in held.items()
            },
            "freed_ms": [[stream.kind, stream.seconds and stream.seconds * 1000] for stream in freed],
            "failed": results.failed,
        },
        panels=[
            Panel(
                "streams/s at 64, instant",
                {name: [results.median(name, STREAMS, per_second)] for name in reversed(names)},
            ),
            Panel(
                f"delay of a token, {count}, ms",
                {name: _curve(stream) for name, stream in held.items()},
                x=list(_SHARES),
                x_label="percentile",
                logarithmic=True,
            ),
        ],
        goals=goals,
    )


_SHARES = (1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


def _curve(streams: OpenStreams) -> list[float]:
    return [streams.held_tokens.percentile(share) / 1e6 for share in _SHARES]


def _held_table(held: dict[str, OpenStreams]) -> str:
    head = ["open streams", "count", "dropped", "delay p50 ms", "p99 ms", "p99.9 ms", "kB each", "CPU, cores"]
    rows = []
    for name, streams in held.items():
        kilobytes = "" if name == "direct" else figure(streams.memory_bytes / streams.count / 1000)
        share = "" if name == "direct" else figure(streams.cpu_share)
        delays = [figure(streams.held_tokens.percentile(part) / 1e6) for part in (50, 99, 99.9)]
        rows.append([name, f"{streams.count:,}", f"{streams.dropped:,}", *delays, kilobytes, share])
    return table(head, rows)


def _freed_table(freed: list[Freed]) -> str:
    head = ["a client disconnects", "times", f"free within {_FREED_MS} ms", "slowest, ms"]
    rows = []
    for kind in dict.fromkeys(stream.kind for stream in freed):
        times = [stream.seconds for stream in freed if stream.kind == kind]
        measured = [seconds * 1000 for seconds in times if seconds is not None]
        slowest = figure(max(measured)) if len(measured) == len(times) else "never"
        rows.append([kind, str(len(times)), str(sum(1 for ms in measured if ms <= _FREED_MS)), slowest])
    return table(head, rows)
