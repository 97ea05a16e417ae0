"""Mixed traffic for half an hour: nothing may grow, and the ledger must be exact at the end."""

import argparse
import asyncio
import itertools
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import httpx

from loadtest.adapter_files import make_adapter, upload
from loadtest.client import Connection, Outcome, Tally
from loadtest.gateway import API_KEY, Gateway, Running
from loadtest.generator import Run, open_loop
from loadtest.processes import REPOSITORY, NotReady, usage_of
from loadtest.report import Goal, Panel, Progress, Report, figure, table
from loadtest.targets import Engine, models_of, set_limits, standin, with_everything_on
from loadtest.traffic import MIX, Traffic, entries_of, unsettled, wrong

_SLEEPER = "smollm2-135m"
_CONNECTIONS = 256
_SAMPLES = 120
_SETTLE_S = 60.0
# All wrong keys come from one address, which would be refused unheard after twenty.
_SECTIONS = "[engines]\nsnapshots = false\n[authentication]\nfailures_per_minute = 100000"
_TASKS = re.compile(r"^torpor_tasks (\S+)", re.MULTILINE)
ABOUT = """Torpor with everything on (as in [overhead](overhead.md)) in front of the stand-in engine and of
a real one that is paused after two seconds without a request, and asked less often than that: each of its
requests wakes it. They go to the model itself and to its adapters in turn, of which there is one more than
the engine has room for. Requests arrive at a fixed rate, chosen by chance from the mix. *Drift* is the mean
of the last quarter of the samples less that of the second one. The process is the gateway's own, its
engines not counted. At the end each request's entry in the ledger is held against what its client received,
and `torpor usage verify` holds the rollups against the entries."""


def options(parser: argparse.ArgumentParser) -> None:
    """The options of this test."""
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    parser.add_argument("--wake-every", type=float, default=6, help="seconds between requests to the sleeper")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models", help="of the sleeper")
    parser.add_argument("--no-wakes", action="store_true", help="leave the real engine out")
    parser.add_argument("--adapters", type=int, default=3, help="of the sleeper, asked in turn with it")
    parser.add_argument("--seed", type=int, default=1)


@dataclass(frozen=True, slots=True)
class Sample:
    """The gateway's own process at a time, seconds from the start."""

    at_s: float
    memory_mb: float
    descriptors: int
    threads: int
    tasks: float


class _Samples:
    """Looks at the gateway 120 times."""

    def __init__(self, running: Running, metrics_url: str) -> None:
        self._pid = running.child.pid
        self._url = metrics_url
        self._begun = time.monotonic()
        self.all: list[Sample] = []

    async def take(self, every_s: float, progress: Progress) -> None:
        """Until it is cancelled."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            while True:
                await asyncio.sleep(every_s)
                used = usage_of(self._pid, below=False)
                match = _TASKS.search((await http.get(self._url)).text)
                self.all.append(
                    Sample(
                        time.monotonic() - self._begun,
                        used.memory_bytes / 1e6,
                        used.descriptors,
                        used.threads,
                        float(match[1]) if match else 0.0,
                    )
                )
                progress.step(f"{self.all[-1].at_s / 60:.1f} min, {self.all[-1].memory_mb:.0f} MB")

    def drift(self, name: str) -> float:
        """What a figure has grown by, from the second quarter to the last."""
        values = [float(getattr(sample, name)) for sample in self.all]
        quarter = len(values) // 4
        if not quarter:
            return float("nan")
        return mean(values[-quarter:]) - mean(values[quarter : 2 * quarter])


async def run(arguments: argparse.Namespace) -> Report:
    """The report. Raises `NotReady`."""
    source = arguments.models / _SLEEPER
    wakes = not arguments.no_wakes
    if wakes and not source.is_dir():
        raise NotReady(f"{_SLEEPER} is missing: make setup, or --no-wakes")
    progress = Progress(_SAMPLES + 2)
    with tempfile.TemporaryDirectory(prefix="load-") as name, standin(Path(name)) as engine:
        folder = Path(name) / "torpor"
        folder.mkdir()
        sleeper = (
            f'[[models]]\nid = "{_SLEEPER}"\nsource = "{source.resolve()}"\nidle_pause_s = 2\n'
            f"[models.lora]\nslots = 1\ncpu_slots = {max(1, arguments.adapters - 1)}\n"
            if wakes
            else ""
        )
        gateway = with_everything_on(folder, f"{sleeper}{models_of(engine)}", _SECTIONS)
        progress.step("start")
        with gateway.serving() as running:
            set_limits(gateway)
            return await _soak(arguments, engine, gateway, running, progress, wakes=wakes)


async def _soak(
    arguments: argparse.Namespace,
    engine: Engine,
    gateway: Gateway,
    running: Running,
    progress: Progress,
    *,
    wakes: bool,
) -> Report:
    traffic, woken = Traffic(running.endpoint, arguments.seed), Tally()
    seconds, models = arguments.minutes * 60, [_SLEEPER]
    if wakes:  # without the cold start
        await _wake(running, traffic, Tally(), _SLEEPER)
        models += await asyncio.to_thread(_adapters, gateway, arguments.models / _SLEEPER, arguments.adapters)
    await engine.state(forget=True)
    over = asyncio.Event()
    samples = _Samples(running, gateway.metrics_url)
    beside = [asyncio.create_task(samples.take(seconds / _SAMPLES, progress))]
    if wakes:
        beside.append(
            asyncio.create_task(_wakes(running, traffic, woken, models, arguments.wake_every, over))
        )
    try:
        done = await open_loop(
            running.endpoint,
            traffic.next,
            rate=arguments.rate,
            connections=_CONNECTIONS,
            seconds=seconds,
            watch=traffic.watch,
        )
    finally:
        over.set()
        beside[0].cancel()
        ended = await asyncio.gather(*beside, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error
    progress.step("the ledger")
    mistakes = await _mistakes(gateway, engine, traffic)
    progress.over()
    return _report(done, woken, samples, traffic, mistakes)


def _adapters(gateway: Gateway, base: Path, count: int) -> list[str]:
    """Upload so many adapters with random weights; returns their names."""
    names = []
    with httpx.Client(base_url=gateway.url, trust_env=False, timeout=60) as http:
        for number in range(count):
            adapter = make_adapter(gateway.folder / f"adapter-{number}", base, seed=number)
            names.append(upload(http, gateway.keys[API_KEY], adapter, _SLEEPER, f"soak-{number}"))
    return names


async def _wakes(
    running: Running, traffic: Traffic, tally: Tally, models: list[str], every_s: float, over: asyncio.Event
) -> None:
    for number in itertools.count():
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await over.wait()
        if over.is_set():
            return
        await _wake(running, traffic, tally, models[number % len(models)])


async def _wake(running: Running, traffic: Traffic, tally: Tally, model: str) -> None:
    """One request to a model that may be asleep, over a connection of its own."""
    connection = await running.endpoint.connect()
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(_connection: Connection, outcome: Outcome) -> None:
        traffic.watch(outcome)
        tally.record(outcome)
        if not answered.done():
            answered.set_result(None)

    connection.ask(traffic.wake(model), ended, tally)
    try:
        await answered
    finally:
        connection.close()


async def _mistakes(gateway: Gateway, engine: Engine, traffic: Traffic) -> Counter[str]:
    """What is wrong with the ledger, once everything in it is settled or a minute is over."""
    entries = entries_of(gateway.database)
    deadline = time.monotonic() + _SETTLE_S
    while unsettled(traffic.sent, entries) and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        entries = entries_of(gateway.database)
    mistakes = wrong(traffic.sent, entries, await engine.state())
    with suppress(NotReady):
        gateway.torpor("usage", "verify")
        return mistakes
    mistakes["rollups that are not what the entries say"] += 1
    return mistakes


_LIMITS: Mapping[str, tuple[str, str, float]] = {
    "memory_mb": ("drift of memory", "MB", 5.0),
    "descriptors": ("drift of file descriptors", "", 8.0),
    "threads": ("drift of threads", "", 1.0),
    "tasks": ("drift of tasks", "", 8.0),
}


def _report(done: Run, woken: Tally, samples: _Samples, traffic: Traffic, mistakes: Counter[str]) -> Report:
    goals = [
        Goal("requests with another answer than they should have", done.tally.failed + woken.failed, "", 0),
        *(Goal(what, samples.drift(name), unit, most) for name, (what, unit, most) in _LIMITS.items()),
        Goal("entries of the ledger that are wrong", sum(mistakes.values()), "", 0),
    ]
    sent = Counter(request.kind for request in traffic.sent.values())
    rows = [[kind, f"{sent[kind]:,}"] for kind in (*MIX, "wake")]
    sections = [table(["requests", "sent"], rows), _samples_table(samples.all)]
    if woken.good:
        middle, most = (woken.total.percentile(share) / 1e6 for share in (50, 99))
        sections.append(f"{woken.good:,} wakes, answered in {middle:.0f} ms (median), {most:.0f} ms (p99).")
    if mistakes:
        sections.append("\n".join(f"- {what}: {count}" for what, count in mistakes.items()))
    if done.tally.failed + woken.failed:
        errors = done.tally.errors + woken.errors
        sections.append("\n".join(f"- {what}: {count}" for what, count in errors.items()))
    times = [sample.at_s / 60 for sample in samples.all]
    return Report(
        name="soak",
        title="A soak",
        about=ABOUT,
        sections=sections,
        data={
            **done.summary(),
            "sent": dict(sent),
            "wakes": woken.summary(),
            "mistakes": dict(mistakes),
            "samples": [asdict(sample) for sample in samples.all],
        },
        panels=[
            Panel(
                title,
                {"torpor": [float(getattr(request, name)) for request in samples.all]},
                times,
                "minutes",
            )
            for name, title in (
                ("memory_mb", "memory, MB"),
                ("descriptors", "file descriptors"),
                ("threads", "threads"),
                ("tasks", "tasks"),
            )
        ],
        goals=goals,
    )


def _samples_table(samples: list[Sample]) -> str:
    """Ten of them."""
    head = ["minutes", "memory MB", "descriptors", "threads", "tasks"]
    selected = samples[:: max(1, len(samples) // 10)]
    rows = [
        [
            f"{sample.at_s / 60:.1f}",
            figure(sample.memory_mb),
            str(sample.descriptors),
            str(sample.threads),
            figure(sample.tasks),
        ]
        for sample in selected
    ]
    return table(head, rows)
