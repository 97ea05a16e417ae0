"""Torpor beside the field: other gateways in turn with it and with the engine alone, in one run."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from loadtest.alternating import (
    Figure,
    Results,
    alternate,
    cpu_us,
    memory_mb,
    p50_ms,
    per_second,
    steps,
    ttft_ms,
)
from loadtest.installing import cache_folder
from loadtest.measure import ALONE, PACED, PLAIN, STREAMS, Load
from loadtest.peers import PEERS
from loadtest.processes import NotReady
from loadtest.report import Panel, Progress, Report, figure, table
from loadtest.targets import DIRECT, TORPOR, Target, standin

LOADS = (PLAIN, ALONE, STREAMS, PACED)
ABOUT = """Load generator, gateway and an instant stand-in engine share the cores; one process of each gateway
(as many threads as it likes), started again in each round; the rounds alternate in their order. Torpor has
everything on ([overhead](overhead.md)), the others what the second and third columns say. Figures are medians
of the rounds, their range behind. CPU is that of the gateway's whole process tree for each good answer: the
figure to trust, since throughput moves with whatever else the machine does. *p50 added* is to direct."""


def options(parser: argparse.ArgumentParser) -> None:
    """The options of this test."""
    parser.add_argument("--peers", default=",".join(PEERS), help="names with commas between them, or none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")


def _targets(names: str) -> list[Target]:
    """Direct, Torpor and the peers. Raises `NotReady` for a name that is not known."""
    selected = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    unknown = [name for name in selected if name not in PEERS]
    if unknown:
        raise NotReady(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return [DIRECT, TORPOR, *(PEERS[name] for name in selected)]


async def run(arguments: argparse.Namespace) -> Report:
    """The report."""
    targets = _targets(arguments.peers)
    progress = Progress(steps(targets, LOADS, arguments.rounds))
    with tempfile.TemporaryDirectory(prefix="load-") as name, standin(Path(name)) as engine:
        results = await alternate(
            engine, targets, LOADS, rounds=arguments.rounds, seconds=arguments.seconds, progress=progress
        )
    progress.over()
    return _report(results, targets)


def _report(results: Results, targets: Sequence[Target]) -> Report:
    there = [target for target in targets if (target.name, PLAIN.name) in results.measured]
    there.sort(key=lambda target: -results.median(target.name, PLAIN, per_second))
    head = [
        "gateway", "keys", "usage kept", "requests/s at 32", "CPU us each", "p50 added at 1, ms",
        "streams/s at 64", "CPU us each", "paced: CPU us each", "TTFT p50 ms", "memory MB", "failed",
    ]  # fmt: skip
    rows = [_row(results, target) for target in there]
    sections = [table(head, rows, left=3)]
    if results.failed:
        lines = [f"- {name}: {_quoted(reason)}" for name, reason in results.failed.items()]
        sections.append("Not measured:\n\n" + "\n".join(lines))
    sections += [_ratios(results, there), results.speed()]
    gateways = [target.name for target in there if target.name != "direct"]
    panels = [
        Panel(title, {name: [results.median(name, load, figure_of)] for name in gateways}, logarithmic=True)
        for title, load, figure_of in (
            ("plain requests/s at 32 connections", PLAIN, per_second),
            ("CPU of a plain request, us", PLAIN, cpu_us),
            ("streams/s at 64, 64 chunks each, instant", STREAMS, per_second),
            ("CPU of a stream paced at 20 ms, us", PACED, cpu_us),
        )
    ]
    return Report(
        name="compare",
        title="Beside other gateways",
        about=ABOUT,
        sections=sections,
        data={"measurements": results.summary(), "failed": results.failed},
        panels=panels,
    )


def _row(results: Results, target: Target) -> list[str]:
    name = target.name
    direct = name == "direct"
    added = results.median(name, ALONE, p50_ms) - results.median("direct", ALONE, p50_ms)
    alone = f"{results.median(name, ALONE, p50_ms):.2f} in all" if direct else f"{added:.2f}"

    def cpu(load: Load) -> str:
        return "" if direct else results.told(name, load, cpu_us)

    return [
        name,
        target.keys,
        target.usage,
        results.told(name, PLAIN, per_second),
        cpu(PLAIN),
        alone,
        results.told(name, STREAMS, per_second),
        cpu(STREAMS),
        cpu(PACED),
        results.told(name, PACED, ttft_ms, 1),
        "" if direct else results.told(name, PACED, memory_mb),
        figure(
            sum(
                sum(measurement.run.tally.failed for measurement in results.measured[name, load.name])
                for load in LOADS
            )
        ),
    ]


def _ratios(results: Results, targets: Sequence[Target]) -> str:
    """Torpor's figure divided by the other's."""

    def ratio(name: str, load: Load, figure_of: Figure) -> str:
        ours, theirs = results.median("torpor", load, figure_of), results.median(name, load, figure_of)
        return figure(ours / theirs) if theirs else "–"

    head = ["Torpor to", "requests/s", "CPU of a request", "streams/s", "CPU of a stream", "CPU, paced"]
    rows = [
        [
            target.name,
            ratio(target.name, PLAIN, per_second),
            ratio(target.name, PLAIN, cpu_us) if target.name != "direct" else "",
            ratio(target.name, STREAMS, per_second),
            ratio(target.name, STREAMS, cpu_us) if target.name != "direct" else "",
            ratio(target.name, PACED, cpu_us) if target.name != "direct" else "",
        ]
        for target in targets
        if target.name != "torpor"
    ]
    return table(head, rows)


def _quoted(reason: str) -> str:
    """On one line, without the folders of this machine."""
    return " ".join(reason.replace(str(cache_folder()), "CACHE").split())[-400:]
