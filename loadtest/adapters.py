"""Adapters from a gateway with a real engine: ``python -m loadtest adapters SECTION [--write PAGE]``.

``first-token``: streams to an adapter that is not resident and to its base model in turns, on an engine that
is hot and on one that sleeps in a snapshot; what counts is the difference of the medians, the machine being
noisy. ``many``: of the registered adapters some are asked for at random by clients that know what each
answers alone: the log-probabilities of the five most probable first tokens, by which one adapter is told from
all others (greedy words alone would differ where two tokens are as probable, and the batch decides). An
answer that is another's, or none, fails the run. ``throughput``: streams of the base model alone and of four
adapters mixed, in turns; what counts is the ratio. ``listing``: pages of a registry with many adapters.
"""

import argparse
import concurrent.futures
import contextlib
import json
import math
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.adapter_files import MODULES, make_adapter, upload
from loadtest.gateway import API_KEY
from loadtest.processes import REPOSITORY
from loadtest.sections import command, write_section
from loadtest.wakes import MODEL, WakingGateway

CONFIG = """
[server]
port = {port}

[metrics]
enabled = false

[engines]
criu = "{root}/.criu"

[[models]]
id = "{model}"
source = "{root}/models/{model}"
idle_pause_s = 3600
idle_snapshot_s = 7200

[models.lora]
slots = {slots}
cpu_slots = {cpu_slots}
"""
PROMPT = "The three things that matter most are"
SETTLE_S = 0.4
WORDS = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """Milliseconds until the first token, and the most probable tokens at its place."""

    first_ms: float
    logprobs: dict[str, float]

    def distance(self, other: "Answer") -> float:
        """The root mean square difference of the log-probabilities that both have; infinite below three."""
        both = self.logprobs.keys() & other.logprobs.keys()
        if len(both) < 3:
            return math.inf
        return math.sqrt(
            sum((self.logprobs[token] - other.logprobs[token]) ** 2 for token in both) / len(both)
        )


class AdapterGateway(WakingGateway):
    """A gateway whose model serves adapters."""

    def __init__(self, folder: Path, slots: int, cpu_slots: int) -> None:
        text = CONFIG.replace("{model}", MODEL).replace("{slots}", str(slots))
        super().__init__(folder, text.replace("{cpu_slots}", str(cpu_slots)))

    def generate(self, model: str, words: int) -> int:
        """Generate so many tokens; returns how many there were."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": words, "ignore_eos": True}
        answer = self.http.post("/v1/completions", headers=self.bearer(), json=body)
        answer.raise_for_status()
        tokens: int = answer.json()["usage"]["completion_tokens"]
        return tokens

    def register(self, folder: Path, seed: int, modules: Sequence[str] = ("q_proj", "v_proj")) -> str:
        """Upload an adapter of random weights. Its name."""
        make_adapter(folder, REPOSITORY / "models" / MODEL, seed=seed, modules=modules, strength=1.0)
        return upload(self.http, self.keys[API_KEY], folder, MODEL, f"load-{seed}")

    def answer(self, model: str, words: int = WORDS) -> Answer:
        """A stream of so many tokens. Raises AssertionError unless every chunk is of that model."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": words, "temperature": 0, "stream": True}
        body["logprobs"] = 5
        began, first_ms = time.perf_counter(), 0.0
        logprobs: dict[str, float] = {}
        with self.http.stream("POST", "/v1/completions", headers=self.bearer(), json=body) as answer:
            if answer.is_error:
                raise AssertionError(f"{answer.status_code}: {answer.read().decode()}")
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk or chunk["model"] != model:
                    raise AssertionError(f"not an answer of {model}: {line}")
                if chunk["choices"] and not logprobs:
                    first_ms = (time.perf_counter() - began) * 1000
                    logprobs = chunk["choices"][0]["logprobs"]["top_logprobs"][0]
        return Answer(first_ms, logprobs)

    def leave(self) -> None:
        """The engine sleeps in its snapshot, without adapters."""
        self.request("POST", f"/v1/torpor/engines/{MODEL}/sleep", {"tier": "snapshot"})
        time.sleep(SETTLE_S)


def first_token(folder: Path, rounds: int) -> str:
    """One adapter more than there is room for, asked for in turns: none is resident when it is asked for."""
    gateway = AdapterGateway(folder, slots=1, cpu_slots=1)
    with gateway.serving():
        gateway.request("POST", f"/v1/torpor/engines/{MODEL}/snapshot")
        names = [gateway.register(folder / f"adapter-{seed}", seed) for seed in range(2)]
        hot = _in_turns(gateway, names, rounds, lambda: time.sleep(SETTLE_S))
        asleep = _in_turns(gateway, names, rounds, gateway.leave)
    rows = [_row("hot", hot), _row("asleep in a snapshot", asleep)]
    head = "| engine | base: TTFT | adapter, not resident: TTFT | difference |\n|---|---|---|---|"
    return "\n".join(
        [f"{rounds} requests each; medians in milliseconds, with the quartiles.", "", head, *rows]
    )


def _in_turns(
    gateway: AdapterGateway, names: Sequence[str], rounds: int, prepare: Callable[[], None]
) -> tuple[list[float], list[float]]:
    base: list[float] = []
    adapter: list[float] = []
    for turn in range(rounds + 1):
        prepare()
        base.append(gateway.answer(MODEL).first_ms)
        prepare()
        adapter.append(gateway.answer(names[turn % len(names)]).first_ms)
    return base[1:], adapter[1:]


def _row(engine: str, series: tuple[list[float], list[float]]) -> str:
    quartiles = [statistics.quantiles(values, n=4) for values in series]
    cells = [f"{median:.0f} ({low:.0f}-{high:.0f})" for low, median, high in quartiles]
    return f"| {engine} | {cells[0]} | {cells[1]} | {quartiles[1][1] - quartiles[0][1]:+.0f} |"


def many(folder: Path, registered: int, used: int, clients: int, seconds: float) -> str:
    """Measure clients that use many adapters. Raises AssertionError for an answer of another adapter."""
    gateway = AdapterGateway(folder, slots=4, cpu_slots=16)
    chance = random.Random(6)
    with gateway.serving():
        began = time.perf_counter()
        names = []
        for seed in range(registered):
            names.append(gateway.register(folder / "adapter", seed))
            if seed % 50 == 49:
                print(f"  {seed + 1} registered", flush=True)
        registering_s = time.perf_counter() - began
        some = chance.sample(names, used)
        alone = {name: gateway.answer(name) for name in some}
        until_s = time.monotonic() + seconds
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            clients_asking = [
                pool.submit(_ask_at_random, gateway, alone, until_s, seed) for seed in range(clients)
            ]
            firsts = [first_ms for future in clients_asking for first_ms in future.result()]
        loads = _loads(gateway)
    quartiles = statistics.quantiles(firsts, n=20)
    return (
        f"{registered} adapters registered in {registering_s:.0f} s, canaries included; {used} of them used"
        f" at random by {clients} clients over 4 slots for {seconds:.0f} s: {len(firsts)} answers, each the"
        f" adapter's own, none failed. TTFT, waiting for a slot included: median {quartiles[9]:.0f} ms, 95 %"
        f" within {quartiles[18]:.0f} ms. {loads} adapters were resident at the end."
    )


def _ask_at_random(
    gateway: AdapterGateway, alone: dict[str, Answer], until_s: float, seed: int
) -> list[float]:
    chance, names, firsts = random.Random(seed), list(alone), []
    while time.monotonic() < until_s:
        name = chance.choice(names)
        answer = gateway.answer(name)
        nearest = min(names, key=lambda other: answer.distance(alone[other]))
        if nearest != name:
            raise AssertionError(f"{name} answered as {nearest}")
        firsts.append(answer.first_ms)
    return firsts


def throughput(folder: Path, rounds: int, streams: int = 8, words: int = 96) -> str:
    """Tokens a second of the base model alone, and of four adapters of rank 8 mixed, in turns."""
    gateway = AdapterGateway(folder, slots=4, cpu_slots=8)
    series: dict[str, list[float]] = {"base": [], "adapters": []}
    with gateway.serving(), concurrent.futures.ThreadPoolExecutor(streams) as pool:
        names = [gateway.register(folder / f"adapter-{seed}", seed, MODULES) for seed in range(4)]
        for turn in range(rounds + 1):
            for label, models in (("base", [MODEL]), ("adapters", names)):
                began = time.perf_counter()
                futures = [
                    pool.submit(gateway.generate, models[number % len(models)], words)
                    for number in range(streams)
                ]
                tokens = sum(future.result() for future in futures)
                if turn:
                    series[label].append(tokens / (time.perf_counter() - began))
    base, adapters = (statistics.median(series[label]) for label in ("base", "adapters"))
    head = "| streams | tokens/s | ratio |\n|---|---:|---:|"
    rows = [
        f"| {streams}, the base model alone | {base:.0f} | 1 |",
        f"| {streams}, four adapters of rank 8, all layers | {adapters:.0f} | {adapters / base:.2f} |",
    ]
    note = f"{rounds} rounds in turns, {words} tokens each; medians. Wanted: at least 0.70."
    return "\n".join([note, "", head, *rows])


def listing(folder: Path, registered: int, rounds: int) -> str:
    """Pages of a registry. Its rows are copies of one that was registered, which never reaches an engine."""
    gateway = AdapterGateway(folder, slots=1, cpu_slots=1)
    with gateway.serving():
        gateway.register(folder / "adapter", 1)
    database = next(folder.rglob("torpor.db"))
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(adapters)")]
        (row,) = connection.execute("SELECT * FROM adapters").fetchall()
        values = dict(zip(names, row, strict=True))
        for number in range(registered - 1):
            values |= {"id": f"{number:022d}", "suffix": f"s{number}"}
            values["name"] = f"ft:{MODEL}:copies:{values['suffix']}:{values['id']}"
            marks = ", ".join("?" * len(names))
            connection.execute(f"INSERT INTO adapters VALUES ({marks})", tuple(values.values()))
    pages: dict[str, list[float]] = {"/v1/torpor/adapters?limit=100": [], "/v1/models": []}
    gateway = AdapterGateway(folder, slots=1, cpu_slots=1)
    with gateway.serving():
        for path, series in pages.items():
            for _ in range(rounds + 1):
                began = time.perf_counter()
                answer = gateway.http.get(path, headers=gateway.bearer())
                answer.raise_for_status()
                series.append((time.perf_counter() - began) * 1000)
    rows = [
        f"| `GET {path}` | {statistics.median(series[1:]):.1f} | {max(series[1:]):.1f} |"
        for path, series in pages.items()
    ]
    head = f"| {registered} adapters | median, ms | slowest of {rounds} |\n|---|---:|---:|"
    return "\n".join([head, *rows, "", "Wanted: a page in under 50 ms."])


def _loads(gateway: AdapterGateway) -> int:
    return sum(len(replica["adapters"]) for replica in gateway.engine()["replicas"])


def main() -> None:
    """Measure, print, and write the section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", choices=["first-token", "many", "throughput", "listing"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--registered", type=int, help="1,000 for many, 10,000 for listing")
    parser.add_argument("--used", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--write", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torpor-adapters-") as folder:
        if chosen.section == "first-token":
            title, text = "First token from an adapter", first_token(Path(folder), chosen.rounds)
        elif chosen.section == "throughput":
            title, text = "Throughput", throughput(Path(folder), max(3, chosen.rounds // 4))
        elif chosen.section == "listing":
            title, text = "Listing", listing(Path(folder), chosen.registered or 10_000, chosen.rounds)
        else:
            title = "Many adapters"
            registered = chosen.registered or 1000
            text = many(Path(folder), registered, chosen.used, chosen.clients, chosen.seconds)
    print(text)
    if chosen.write is not None:
        write_section(chosen.write, title, f"{text}\n\n{command('loadtest adapters')}")


if __name__ == "__main__":
    main()
