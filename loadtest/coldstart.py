"""How long engines take to wake: ``python -m loadtest coldstart [--write docs/benchmarks/coldstart.md]``.

Starts a gateway of its own with the real engine and model, and vLLM itself beside it, in one run: the machine
is noisy, so what counts are the ratios. Speaks HTTP to both. *Ready* is the time from the host's decision to
an answer of the engine's socket, as ``GET /v1/torpor/engines`` tells; *TTFT* is taken by the client, from
sending the request to the first token of the stream. Dropping the page cache needs root.
"""

import argparse
import concurrent.futures
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest import model_wakes
from loadtest.gateway import TIMEOUT_S
from loadtest.processes import REPOSITORY, Child, free_port, python
from loadtest.wakes import MEASURED_AFTER_S, MODEL, SETTLE_S, WakingGateway, drop_page_cache

CROWD = "crowd"

CONFIG = """
[server]
port = {port}

[engines]
criu = "{root}/.criu"

[[models]]
id = "smollm2-135m"
source = "{root}/models/smollm2-135m"
idle_pause_s = 3600
idle_snapshot_s = 7200

[[models]]
id = "crowd"
source = "{root}/models/smollm2-135m"
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


def stock_vllm(folder: Path) -> float:
    """Milliseconds from starting vLLM's own server, as it comes, to its first healthy answer."""
    port = free_port()
    arguments = [
        "--model", str(REPOSITORY / "models" / MODEL), "--served-model-name", MODEL, "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "bfloat16", "--enforce-eager",
        "--kv-cache-memory-bytes", str(1 << 30),
    ]  # fmt: skip
    command = python("-m", "vllm.entrypoints.launchers.api_server.entry", *arguments)
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "HOME": str(folder)}
    with Child("vLLM", command, log=folder / "stock.log", environment=environment) as child:
        return child.wait_for(f"http://127.0.0.1:{port}/health", TIMEOUT_S) * 1000


def measure(gateway: WakingGateway, name: str, wakes: int, prepare: Callable[[], None] | None = None) -> Tier:
    """``wakes`` requests that each find the engine in the tier."""
    tier = Tier()
    for turn in range(wakes + 1):
        if name != "hot":
            gateway.sleep(name)
        else:
            time.sleep(SETTLE_S)  # as idle as the others: a processor that has rested is slower at first
        if prepare is not None:
            prepare()
        ttft_ms, tier_before = gateway.ask()
        if tier_before != name:
            raise AssertionError(f"found {tier_before}, not {name}")
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


def crowd(gateway: WakingGateway, replicas: int) -> Crowd:
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


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def report(arguments: Sequence[str]) -> str:
    """Measure everything. The markdown page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wakes", type=_positive, default=20, help="of each tier")
    parser.add_argument(
        "--cold", type=_positive, default=3, help="cold starts of vLLM itself and of Torpor's engine"
    )
    parser.add_argument("--replicas", type=_positive, default=10)
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="measure this model's wakes alone")
    options = parser.parse_args(arguments)
    if options.model is not None:
        return model_wakes.report(options.model, options.wakes, options.write)
    with tempfile.TemporaryDirectory(prefix="torpor-coldstart-") as scratch:
        folder = Path(scratch)
        print("cold starts of vLLM itself", flush=True)
        stock = Series([stock_vllm(folder) for _ in range(options.cold)])
        gateway = WakingGateway(folder, CONFIG.replace("{replicas}", str(options.replicas)))
        print(gateway.torpor("snapshot", "create"), flush=True)
        with gateway.serving():
            cold = measure(gateway, "cold", options.cold)
            tiers = {name: measure(gateway, name, options.wakes) for name in ("hot", "paused", "snapshot")}
            tiers["dropped"] = measure(gateway, "snapshot", options.wakes, drop_page_cache)
            gateway.sleep("snapshot")
            asleep = (len(gateway.engine_processes()), gateway.engine()["memory_bytes"])
            together = crowd(gateway, options.replicas)
            snapshots = gateway.request("GET", "/v1/torpor/snapshots")["data"]
            disk = {snapshot["model"]: snapshot["disk_bytes"] for snapshot in snapshots}
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
        f"`python -m loadtest coldstart --wakes {wakes}`: {MODEL} on {os.cpu_count()} cores, Linux "
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


def main() -> None:
    """The command line."""
    print(report(sys.argv[1:]))


if __name__ == "__main__":
    main()
