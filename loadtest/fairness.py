"""What a flood does to its neighbour: ``python -m loadtest fairness [--write docs/benchmarks/fairness.md]``.

Starts a gateway of its own with the real engine and model. Tenant A keeps 64 streams open, tenant B asks
once a second for a few tokens; B's time to the first token is taken by B's client, alone, and beside A under
each discipline at the same cap, and once without a cap worth the name. A runs in a process of its own, with
raw sockets, since what it uses of the processor is taken from the engine. All in one run: the machine is
noisy, so what counts are the ratios.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from loadtest.gateway import Gateway
from loadtest.processes import REPOSITORY

SOURCE = "smollm2-135m"
STREAMS = 64
FLOOD_TOKENS = 128
QUESTION_TOKENS = 8
WARM_UP_S = 8.0

CONFIG = """
[server]
port = {port}

[metrics]
enabled = false

[engines]
snapshots = false
"""

MODEL = """
[[models]]
id = "{id}"
source = "{root}/models/{source}"
idle_pause_s = 7200
max_running = {running}
max_concurrent = {cap}
queue_discipline = "{discipline}"
{more}
"""


@dataclass
class Run:
    """What B saw in milliseconds, and what the engine made in tokens a second."""

    name: str
    ttft: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)
    tokens_s: float = 0.0

    def quantile(self, share: float) -> float:
        return quantile(self.ttft, share)


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest rank."""
    return sorted(values)[max(0, -(-int(share * 100) * len(values) // 100) - 1)]


def set_awake(gateway: Gateway, model: str, *, awake: bool) -> None:
    """Wake a model's engine, or end it."""
    path = f"/v1/torpor/engines/{model}/{'wake' if awake else 'sleep'}"
    gateway.request("POST", path, {"tier": "cold"})


def request(port: int, key: str, model: str, text: str, tokens: int) -> bytes:
    """A streaming chat completion of exactly so many tokens, as bytes on the wire."""
    fields = {
        "model": model, "stream": True, "max_tokens": tokens, "ignore_eos": True,
        "messages": [{"role": "user", "content": text}],
    }  # fmt: skip
    body = json.dumps(fields).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def flood(port: int, key: str, model: str, words: int, count: "Synchronized[int]") -> None:
    """Keep `STREAMS` streams open until the process is ended; counts their events, one for each token."""

    async def stream(number: int) -> None:
        turn = 0
        while True:
            turn += 1
            text = f"Tell the story number {number} of the year {turn}" + " and then" * words
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(port, key, model, text, FLOOD_TOKENS))
            while piece := await reader.read(65536):
                count.value += piece.count(b"data: {")
            writer.close()

    async def streams() -> None:
        await asyncio.gather(*(stream(number) for number in range(STREAMS)))

    asyncio.run(streams())


def ask(port: int, key: str, model: str, number: int) -> tuple[float, float]:
    """B's request: milliseconds to the first token, and how long of that the gateway says it was queued."""
    began, first, received = time.perf_counter(), 0.0, b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request(port, key, model, f"What is {number} plus one?", QUESTION_TOKENS))
        while piece := connection.recv(65536):
            received += piece
            if not first and b'"content":"' in received.replace(b'"content":""', b""):
                first = (time.perf_counter() - began) * 1000
    if b"data: [DONE]" not in received:
        raise AssertionError(received.decode(errors="replace"))
    timing = received.partition(b"server-timing: ")[2].partition(b"\r\n")[0].decode()
    spans = dict(span.split(";dur=") for span in timing.split(", "))
    return first, float(spans.get("queue", 0.0))


def questions(gateway: Gateway, key: str, run: Run, model: str, seconds: float) -> None:
    """B's questions, one a second, whatever the last one took."""
    began = time.monotonic()
    for number in range(round(seconds)):
        time.sleep(max(0.0, began + number - time.monotonic()))
        ttft, queued = ask(gateway.port, key, model, number)
        run.ttft.append(ttft)
        run.queued.append(queued)


def beside_the_flood(
    gateway: Gateway, keys: tuple[str, str], run: Run, model: str, seconds: float, words: int
) -> None:
    context = multiprocessing.get_context("spawn")
    count = context.Value("q", 0, lock=False)
    process = context.Process(target=flood, args=(gateway.port, keys[0], model, words, count), daemon=True)
    process.start()
    try:
        time.sleep(WARM_UP_S)
        before, began = count.value, time.perf_counter()
        questions(gateway, keys[1], run, model, seconds)
        run.tokens_s = (count.value - before) / (time.perf_counter() - began)
    finally:
        process.terminate()
        process.join()
    time.sleep(2)  # what was aborted leaves the engine


def measure(options: argparse.Namespace) -> list[Run]:
    settings = [("fair", options.cap, options.cap), ("fifo", options.cap, options.cap)]
    if options.uncapped:
        settings.append(("fifo", STREAMS + 1, STREAMS + 1))
    more = f"engine_args = {json.dumps(options.engine_args.split())}" if options.engine_args else ""
    if options.reserved is not None:
        more += f"\nreserved_slots = {options.reserved}"
    names = [f"{discipline}-{cap}" for discipline, cap, _ in settings]
    models = "".join(
        MODEL.format(
            id=name,
            root=REPOSITORY,
            source=SOURCE,
            running=running,
            cap=cap,
            discipline=discipline,
            more=more,
        )
        for name, (discipline, cap, running) in zip(names, settings, strict=True)
    )
    alone = Run("alone")
    runs = [alone, *(Run(name) for name in names)]
    with tempfile.TemporaryDirectory(prefix="torpor-fairness-") as folder:
        gateway = Gateway(Path(folder), CONFIG + models)
        with gateway.serving():
            keys = (gateway.tenant("a"), gateway.tenant("b"))
            for run in runs[1:]:
                set_awake(gateway, run.name, awake=True)
                questions(gateway, keys[1], Run("warm-up"), run.name, 3)
                if run is runs[1]:
                    questions(gateway, keys[1], alone, run.name, options.seconds)
                    tell(alone)
                beside_the_flood(gateway, keys, run, run.name, options.seconds, options.words)
                tell(run)
                set_awake(gateway, run.name, awake=False)
    return runs


def tell(run: Run) -> None:
    print(
        f"  {run.name}: TTFT p50 {run.quantile(0.5):.0f} p95 {run.quantile(0.95):.0f} ms, "
        f"queued p95 {quantile(run.queued, 0.95):.1f} ms, {run.tokens_s:.0f} tokens/s",
        file=sys.stderr,
        flush=True,
    )


def report(options: argparse.Namespace) -> str:
    runs = measure(options)
    alone, fair, fifo = runs[:3]
    titles = {
        "alone": "B alone",
        fair.name: f"beside A, fair, {options.cap} at once",
        fifo.name: f"beside A, first come first served, {options.cap} at once",
    }
    lines = [
        "# Fairness",
        "",
        f"`python -m loadtest fairness`: {SOURCE} on {os.cpu_count()} cores, Linux {platform.release()}, "
        f"everything in one run. A keeps {STREAMS} streams of {FLOOD_TOKENS} tokens open; B asks once a "
        f"second for {QUESTION_TOKENS} tokens, for {options.seconds:.0f} s a row. Milliseconds.",
        "",
        "| | B's TTFT p50 | p95 | max | B in the queue, p95 | p95 / alone | A's tokens/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        title = titles.get(run.name, f"beside A, first come first served, {STREAMS + 1} at once (no cap)")
        ratio = run.quantile(0.95) / alone.quantile(0.95)
        rate = f"{run.tokens_s:.0f}" if run is not alone else ""
        lines.append(
            f"| {title} | {run.quantile(0.5):.0f} | {run.quantile(0.95):.0f} | {max(run.ttft):.0f} "
            f"| {quantile(run.queued, 0.95):.1f} | {ratio:.1f} | {rate} |"
        )
    ratio = fair.quantile(0.95) / alone.quantile(0.95)
    loss = 100 * (1 - fair.tokens_s / fifo.tokens_s)
    lines += [
        "",
        "| what | reached | wanted | |",
        "|---|---:|---:|---|",
        f"| B's p95 TTFT beside A, as a multiple of alone | {ratio:.2f} | at most 3 "
        f"| {'yes' if ratio <= 3 else 'NO'} |",
        f"| throughput lost to first come first served at the same cap | {loss:.1f} % | at most 5 % "
        f"| {'yes' if loss <= 5 else 'NO'} |",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each row")
    parser.add_argument("--cap", type=int, default=32, help="max_concurrent")
    parser.add_argument("--reserved", type=int, help="reserved_slots")
    parser.add_argument("--words", type=int, default=0, help="make A's prompts longer by twice so many words")
    parser.add_argument("--engine-args", default="", help="further arguments of the engine")
    parser.add_argument("--no-uncapped", dest="uncapped", action="store_false")
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    page = report(options)
    print(page)
    if options.write:
        options.write.write_text(page)


if __name__ == "__main__":
    main()
