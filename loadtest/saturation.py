"""A real engine at saturation, directly and through Torpor: what share of its tokens a second is left."""

import argparse
import json
import random
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtest.client import Ask, Endpoint
from loadtest.gateway import Gateway, Running
from loadtest.generator import closed_loop
from loadtest.measure import Series
from loadtest.processes import REPOSITORY, Child, NotReady, python
from loadtest.report import Goal, Panel, Progress, Report, table
from loadtest.targets import set_limits, with_everything_on

_MODEL = "smollm2-135m"
_WAKE_S = 300.0
_BENCH_S = 600.0
_WORDS = ("river", "stone", "lamp", "cloud", "paper", "train", "night", "apple", "glass", "wind", "table")
ABOUT = """One vLLM engine that Torpor runs, asked over its own Unix socket (*direct*) and through Torpor
(everything on, as in [overhead](overhead.md)), in alternating order, by two clients: vLLM's serving
benchmark (`vllm.benchmarks.serve`, dataset *random*) and the load generator of these tests. Every prompt is
new, so no prefix cache helps; every answer is streamed and has all the tokens that were asked for.
There is one tenant, and no slot is kept for others (`reserved_slots`, of which one in 16 is kept by default).
Client, gateway and engine share the cores, so what the gateway takes is not there for the engine. A
share is the median of the rounds' ratios; each ratio is of two runs, one after the other."""


def options(parser: argparse.ArgumentParser) -> None:
    """The options of this test."""
    parser.add_argument("--rounds", type=int, default=5, help="of two runs for each client")
    parser.add_argument("--prompts", type=int, default=128, help="of each run")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--input", type=int, default=32, help="tokens of a prompt, about")
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--clients", default="ours,vllm", help="ours, vllm, or both")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models")


@dataclass(frozen=True, slots=True)
class Side:
    """One way to the engine."""

    name: str
    endpoint: Endpoint
    url: str
    uds: Path | None


@dataclass(frozen=True, slots=True)
class Reached:
    """What a run came to."""

    client: str
    side: str
    tokens_per_second: float
    ttft_ms: float
    itl_ms: float
    failed: int
    errors: tuple[str, ...] = ()


Client = Callable[[Side, int], Awaitable[Reached]]


async def run(arguments: argparse.Namespace) -> Report:
    """The report. Raises `NotReady`."""
    source = arguments.models / _MODEL
    if not source.is_dir():
        raise NotReady(f"{_MODEL} is missing: make setup")
    clients: dict[str, Client] = {}
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        folder = Path(name)
        clients_by_name: dict[str, Client] = {
            "ours": lambda side, seed: _ours(side, seed, arguments),
            "vllm": lambda side, seed: _vllm(side, seed, arguments, folder),
        }
        clients = {client: clients_by_name[client] for client in arguments.clients.split(",")}
        progress = Progress(1 + 2 * arguments.rounds * len(clients))
        progress.step("engine: start")
        section = (
            f'[[models]]\nid = "{_MODEL}"\nsource = "{source.resolve()}"\nidle_pause_s = 3600\n'
            f"max_running = {arguments.concurrency}\nreserved_slots = 0\n"
            f'[[prices]]\nmodel = "{_MODEL}"\ninput = "1"\noutput = "2"\n'
        )
        gateway = with_everything_on(folder, section, "[engines]\nsnapshots = false")
        with gateway.serving() as running:
            set_limits(gateway)
            sides = _sides(gateway, running)
            await _ours(sides[0], 0, arguments)  # warms the engine up
            reached = []
            for number in range(arguments.rounds):
                for client_name, client in clients.items():
                    for side in sides if number % 2 == 0 else sides[::-1]:
                        progress.step(f"{client_name}: {side.name}")
                        reached.append(await client(side, number + 1))
    progress.over()
    return _report(reached, list(clients))


def _sides(gateway: Gateway, running: Running) -> list[Side]:
    """Wakes the engine, and finds its socket."""
    headers = {"authorization": f"Bearer {running.endpoint.key}"}
    body = {"model": _MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    with httpx.Client(trust_env=False, timeout=_WAKE_S, headers=headers) as http:
        http.post(f"{gateway.url}/v1/chat/completions", json=body).raise_for_status()
    sockets = [path for path in (gateway.folder / ".torpor/run").rglob("s") if path.is_socket()]
    if len(sockets) != 1:
        raise NotReady(f"the engine's socket is not there: {len(sockets)} found")
    direct = Side("direct", Endpoint(uds=str(sockets[0])), "http://engine", sockets[0])
    return [direct, Side("torpor", running.endpoint, gateway.url, None)]


async def _ours(side: Side, seed: int, arguments: argparse.Namespace) -> Reached:
    chance = random.Random(f"{seed} {side.name}")

    def ask() -> Ask:
        text = " ".join(chance.choice(_WORDS) for _ in range(arguments.input))
        body = {
            "model": _MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": arguments.output,
            "ignore_eos": True,
            "stream": True,
        }
        # Text that is not a whole character yet comes with a later token: some chunks may be missing.
        return Ask(side.endpoint.request(body), streamed=True, tokens=arguments.output, exact=False)

    done = await closed_loop(
        side.endpoint, ask, connections=arguments.concurrency, seconds=_BENCH_S, requests=arguments.prompts
    )
    tally = done.tally
    return Reached(
        "ours",
        side.name,
        tally.good * arguments.output / done.seconds,
        tally.ttft.percentile(50) / 1e6,
        tally.itl.percentile(50) / 1e6,
        tally.failed,
        tuple(tally.errors),
    )


async def _vllm(side: Side, seed: int, arguments: argparse.Namespace, folder: Path) -> Reached:
    name = f"{side.name}-{seed}.json"
    command = python("-m", "loadtest.vllm_bench")
    command += ["--uds", str(side.uds)] if side.uds is not None else []
    chosen: dict[str, Any] = {
        "--backend": "openai-chat",
        "--base-url": side.url,
        "--endpoint": "/v1/chat/completions",
        "--model": arguments.models / _MODEL,
        "--served-model-name": _MODEL,
        "--dataset-name": "random",
        "--random-input-len": arguments.input,
        "--random-output-len": arguments.output,
        "--num-prompts": arguments.prompts,
        "--max-concurrency": arguments.concurrency,
        "--seed": f"{seed}{len(side.name)}",
        "--percentile-metrics": "ttft,itl",
        "--result-dir": folder,
        "--result-filename": name,
    }
    command += [str(word) for pair in chosen.items() for word in pair]
    command += ["--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
    environment = {"OPENAI_API_KEY": side.endpoint.key or "none"}
    with Child("vllm bench", command, log=folder / "bench.log", environment=environment) as child:
        await child.finished(_BENCH_S)
    result = json.loads((folder / name).read_text())
    return Reached(
        "vllm",
        side.name,
        result["output_throughput"],
        result["median_ttft_ms"],
        result["median_itl_ms"],
        result["failed"],
        tuple(dict.fromkeys(error.splitlines()[-1] for error in result["errors"] if error)),
    )


_NAMES = {"ours": "load generator", "vllm": "vllm.benchmarks.serve"}


def _report(reached: list[Reached], clients: list[str]) -> Report:
    head = ["client", "", "tokens/s", "TTFT p50 ms", "ITL p50 ms", "failed"]
    rows, goals, panels = [], [], []
    for client in clients:
        by_side = {
            name: [figure for figure in reached if (figure.client, figure.side) == (client, name)]
            for name in ("direct", "torpor")
        }
        for name, runs in by_side.items():
            rows.append(
                [
                    _NAMES[client],
                    name,
                    Series(tuple(figure.tokens_per_second for figure in runs)).told(),
                    Series(tuple(figure.ttft_ms for figure in runs)).told(),
                    Series(tuple(figure.itl_ms for figure in runs)).told(1),
                    str(sum(figure.failed for figure in runs)),
                ]
            )
        shares = Series(
            tuple(
                100 * ours.tokens_per_second / alone.tokens_per_second
                for ours, alone in zip(by_side["torpor"], by_side["direct"], strict=True)
            )
        )
        goals.append(
            Goal(
                f"share of the engine's own tokens/s, {_NAMES[client]}",
                shares.median,
                "%",
                99,
                at_least=True,
                note=f"{min(shares.values):.1f}–{max(shares.values):.1f}",
            )
        )
        panels.append(
            Panel(
                f"tokens/s by round, {_NAMES[client]}",
                {name: [figure.tokens_per_second for figure in runs] for name, runs in by_side.items()},
                x=[float(number + 1) for number in range(len(by_side["direct"]))],
                x_label="round",
            )
        )
    failures = [
        f"- {_NAMES[figure.client]}, {figure.side}: {error}" for figure in reached for error in figure.errors
    ]
    return Report(
        name="saturation",
        title="At an engine's saturation",
        about=ABOUT,
        sections=[table(head, rows, left=2), *(["\n".join(failures)] if failures else [])],
        data={
            "runs": [
                {
                    "client": figure.client,
                    "side": figure.side,
                    "tokens_per_second": figure.tokens_per_second,
                    "ttft_ms": figure.ttft_ms,
                    "itl_ms": figure.itl_ms,
                    "failed": figure.failed,
                }
                for figure in reached
            ]
        },
        panels=panels,
        goals=goals,
    )
