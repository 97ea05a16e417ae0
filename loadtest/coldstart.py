"""How long engines take to wake: ``python -m loadtest.coldstart [--write docs/benchmarks/coldstart.md]``.

Starts a gateway of its own with the real engine and model, and vLLM itself beside it, in one run: the machine
is noisy, so what counts are the ratios. Speaks HTTP to both. *Ready* is the time from the host's decision to
an answer of the engine's socket, as ``GET /v1/torpor/engines`` tells; *TTFT* is taken by the client, from
sending the request to the first token of the stream. Dropping the page cache needs root.
"""

import argparse
import concurrent.futures
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"
CROWD = "crowd"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "Paris"
TIMEOUT_S = 600.0
SETTLE_S = 0.8
MEASURED_AFTER_S = 7.0

CONFIG = """
[server]
port = {port}

[engines]
criu = "{root}/.criu"

[[models]]
id = "{model}"
source = "{root}/models/{model}"
idle_pause_s = 3600
idle_snapshot_s = 7200

[[models]]
id = "{crowd}"
source = "{root}/models/{model}"
max_running = 1
max_replicas = {replicas}
idle_pause_s = 3600
idle_snapshot_s = 7200
"""


@dataclass
class Series:
    """Milliseconds."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        return sorted(self.values)[max(0, -(-95 * len(self.values) // 100) - 1)]


@dataclass
class Tier:
    """What was measured of the wakes from one tier."""

    ready: Series = field(default_factory=Series)
    ttft: Series = field(default_factory=Series)
    phases: dict[str, Series] = field(default_factory=dict)


class Gateway:
    """A gateway in a folder of its own."""

    def __init__(self, folder: Path, replicas: int) -> None:
        self.folder = folder
        self.port = free_port()
        text = CONFIG.format(port=self.port, root=ROOT, model=MODEL, crowd=CROWD, replicas=replicas)
        (folder / "torpor.toml").write_text(text)
        self.torpor("setup")
        pairs = (line.removeprefix("export ").split("=", 1) for line in self.lines())
        self.keys = dict(pairs)
        url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)

    def lines(self) -> list[str]:
        return (self.folder / ".torpor/credentials.env").read_text().splitlines()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "gateway.cli", *arguments]

    def torpor(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    @contextmanager
    def running(self) -> Iterator["Gateway"]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (self.folder / "gateway.log").open("wb") as log:
            process = subprocess.Popen(
                self.command("serve"), cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        try:
            until(lambda: answers(self.http, "/health/ready"))
            self.process = psutil.Process(process.pid)
            yield self
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            self.http.close()

    def root(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {self.keys['TORPOR_ROOT_KEY']}"}
        answer = self.http.request(method, f"/v1/torpor/{path}", headers=headers, json=body)
        answer.raise_for_status()
        return answer.json()

    def engine(self, model: str = MODEL) -> dict[str, Any]:
        found: dict[str, Any] = next(e for e in self.root("GET", "engines")["data"] if e["id"] == model)
        return found

    def sleep(self, tier: str, model: str = MODEL) -> None:
        self.root("POST", f"engines/{model}/sleep", {"tier": tier})
        time.sleep(SETTLE_S)

    def ask(self, model: str = MODEL) -> tuple[float, str]:
        """TTFT in milliseconds and the tier that was found. Raises AssertionError for a wrong answer."""
        headers = {"authorization": f"Bearer {self.keys['TORPOR_API_KEY']}"}
        body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 12, "stream": True}
        began, first, text = time.perf_counter(), 0.0, ""
        with self.http.stream("POST", "/v1/chat/completions", headers=headers, json=body) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                piece = json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content")
                if piece:
                    first = first or (time.perf_counter() - began) * 1000
                    text += piece
        if ANSWER not in text:
            raise AssertionError(f"a wrong answer: {text!r}")
        return first, answer.headers["x-torpor-engine"]

    def complete(self, model: str) -> None:
        """One token that is right or wrong. Raises AssertionError."""
        headers = {"authorization": f"Bearer {self.keys['TORPOR_API_KEY']}"}
        body = {"model": model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 1}
        answer = self.http.post("/v1/completions", headers=headers, json=body)
        if ANSWER not in answer.text:
            raise AssertionError(f"a wrong answer: {answer.text!r}")

    def engine_processes(self) -> list[psutil.Process]:
        """Without spare sandboxes."""
        below = self.process.children(recursive=True)
        return [p for p in below if not any("init.py" in word for word in p.cmdline())]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(http: httpx.Client, path: str) -> bool:
    try:
        return http.get(path).is_success
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], poll_s: float = 0.05) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it took too long")
        time.sleep(poll_s)


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1\n")


def stock_vllm(folder: Path) -> float:
    """Milliseconds from starting vLLM's own server, as it comes, to its first healthy answer."""
    port = free_port()
    arguments = [
        "--model", str(ROOT / "models" / MODEL), "--served-model-name", MODEL, "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "bfloat16", "--enforce-eager",
        "--kv-cache-memory-bytes", str(1 << 30),
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "HOME": str(folder)}
    began = time.perf_counter()
    with (folder / "stock.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *arguments],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            until(lambda: answers(http, "/health"))
        return (time.perf_counter() - began) * 1000
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        psutil.wait_procs(family, 20)
        for left in family:
            if left.is_running():
                left.kill()
        process.wait()


def measure(gateway: Gateway, name: str, wakes: int, prepare: Callable[[], None] | None = None) -> Tier:
    """``wakes`` requests that each find the engine in the tier."""
    tier = Tier()
    for turn in range(wakes + 1):
        if name != "hot":
            gateway.sleep(name)
        else:
            time.sleep(SETTLE_S)  # as idle as the others: a processor that has rested is slower at first
        if prepare is not None:
            prepare()
        ttft_ms, found = gateway.ask()
        if found != name:
            raise AssertionError(f"found {found}, not {name}")
        if turn == 0:
            continue  # warms up what is not measured: connections, this process
        tier.ttft.values.append(ttft_ms)
        if name != "hot":
            wake = gateway.engine()["wakes"][-1]["ms"]
            tier.ready.values.append(wake["total"])
            for phase, ms in wake.items():
                tier.phases.setdefault(phase, Series()).values.append(ms)
        print(f"  {name}: TTFT {ttft_ms:.0f} ms", flush=True)
    return tier


@dataclass
class Crowd:
    """Replicas of one snapshot woken together, each by a request for one token."""

    seconds: float
    replicas: int
    first_bytes: int
    each_bytes: float


def crowd(gateway: Gateway, replicas: int) -> Crowd:
    gateway.ask(CROWD)
    time.sleep(MEASURED_AFTER_S)
    first = gateway.engine(CROWD)["memory_bytes"]
    gateway.sleep("snapshot", CROWD)
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(replicas) as pool:
        list(pool.map(lambda _: gateway.complete(CROWD), range(replicas)))
    seconds = time.perf_counter() - began
    awake = len(gateway.engine(CROWD)["replicas"])
    time.sleep(MEASURED_AFTER_S)
    total = gateway.engine(CROWD)["memory_bytes"]
    gateway.sleep("snapshot", CROWD)
    return Crowd(seconds, awake, first, (total - first) / max(1, awake - 1))


def report(arguments: Sequence[str]) -> str:
    """Measure everything. The markdown page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wakes", type=int, default=20, help="of each tier")
    parser.add_argument(
        "--cold", type=int, default=3, help="cold starts of vLLM itself and of Torpor's engine"
    )
    parser.add_argument("--replicas", type=int, default=10)
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="torpor-coldstart-") as scratch:
        folder = Path(scratch)
        print("cold starts of vLLM itself", flush=True)
        stock = Series([stock_vllm(folder) for _ in range(options.cold)])
        gateway = Gateway(folder, options.replicas)
        print(gateway.torpor("snapshot", "create"), flush=True)
        with gateway.running():
            cold = measure(gateway, "cold", options.cold)
            tiers = {name: measure(gateway, name, options.wakes) for name in ("hot", "paused", "snapshot")}
            tiers["dropped"] = measure(gateway, "snapshot", options.wakes, drop_page_cache)
            gateway.sleep("snapshot")
            asleep = (len(gateway.engine_processes()), gateway.engine()["memory_bytes"])
            together = crowd(gateway, options.replicas)
            disk = {s["model"]: s["disk_bytes"] for s in gateway.root("GET", "snapshots")["data"]}
    page = render(options.wakes, stock, cold, tiers, asleep, together, disk[MODEL])
    if options.write:
        options.write.write_text(page)
    return page


def render(
    wakes: int,
    stock: Series,
    cold: Tier,
    tiers: dict[str, Tier],
    asleep: tuple[int, int],
    together: Crowd,
    disk_bytes: int,
) -> str:
    hot, snapshot, dropped = tiers["hot"].ttft.median, tiers["snapshot"], tiers["dropped"]
    lines = [
        "# Waking engines",
        "",
        f"`python -m loadtest.coldstart --wakes {wakes}`: {MODEL} on {os.cpu_count()} cores, Linux "
        f"{platform.release()}, everything in one run. Medians and p95 in milliseconds.",
        "",
        "| tier | ready | p95 | TTFT | p95 | TTFT - hot | vLLM's cold start / ready |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"| vLLM itself, cold | {stock.median:.0f} | {stock.p95:.0f} | | | | 1 |",
    ]
    rows = {
        "cold": cold,
        "snapshot, page cache dropped": dropped,
        "snapshot": snapshot,
        "paused": tiers["paused"],
    }
    lines += [
        f"| {name} | {tier.ready.median:.1f} | {tier.ready.p95:.1f} | {tier.ttft.median:.0f} "
        f"| {tier.ttft.p95:.0f} | {tier.ttft.median - hot:.0f} | {stock.median / tier.ready.median:.0f} |"
        for name, tier in rows.items()
    ]
    hot_p95 = tiers["hot"].ttft.p95
    lines += [
        f"| hot | | | {hot:.0f} | {hot_p95:.0f} | 0 | |",
        "",
        "Where the time of a snapshot's wake goes:",
        "",
    ]
    lines += ["| phase | median | p95 | page cache dropped, median |", "|---|---:|---:|---:|"]
    lines += [
        f"| {phase} | {series.median:.1f} | {series.p95:.1f} | {dropped.phases[phase].median:.1f} |"
        for phase, series in snapshot.phases.items()
    ]
    goals = [
        ("snapshot wake to ready, median", snapshot.ready.median, "ms", 70.0),
        ("snapshot wake to ready, p95", snapshot.ready.p95, "ms", 100.0),
        ("TTFT from a snapshot, more than hot", snapshot.ttft.median - hot, "ms", 120.0),
        ("TTFT from paused, more than hot", tiers["paused"].ttft.median - hot, "ms", 20.0),
        ("snapshot wake to ready, page cache dropped, median", dropped.ready.median, "ms", 500.0),
        ("memory of each further replica", together.each_bytes / 1e6, "MB PSS", 250.0),
        ("processes while asleep in a snapshot", float(asleep[0]), "", 0.0),
        ("memory while asleep in a snapshot", asleep[1] / 1e6, "MB", 0.0),
        (f"snapshot of {MODEL} on disk", disk_bytes / 1e9, "GB", 1.2),
        (
            f"{together.replicas} replicas woken together by as many requests for a token",
            together.seconds,
            "s",
            2.0,
        ),
    ]
    ratio = stock.median / snapshot.ready.median
    lines += ["", "| what | reached | wanted | |", "|---|---:|---:|---|"]
    lines += [
        f"| {what} | {value:.4g} {unit} | at most {goal:g} {unit} | {'yes' if value <= goal else 'NO'} |"
        for what, value, unit, goal in goals
    ]
    lines += [
        f"| vLLM's cold start / snapshot wake | {ratio:.0f} | at least 400 "
        f"| {'yes' if ratio >= 400 else 'NO'} |",
        "",
        "The canary is computed in the batch of the first request; `total` (ready) ends before it. The first "
        f"replica alone used {together.first_bytes / 1e6:.0f} MB of PSS, pages of the snapshot included.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(sys.argv[1:]))
