"""How wakes depend on a model's size: ``python -m loadtest.coldstart --model FOLDER --write PAGE``.

Each call measures one model with a gateway of its own and adds a row to the page's figures, which are kept
beside it as JSON: a run takes minutes, and sizes can be measured one by one (`loadtest.random_model`).
"""

import concurrent.futures
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.own_gateway import MEASURED_AFTER_S, SETTLE_S, Gateway, drop_page_cache
from loadtest.report import machine, table

_GOAL_RATIO = 1.5
# Of the request's own prefill, and in milliseconds: what the canary and first touches may add to a wake.
_SHARE, _EXTRA_MS = 0.1, 100.0
_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")

CONFIG = """
[server]
port = {port}

[engines]
criu = "{root}/.criu"

[[models]]
id = "model"
source = "{source}"
max_replicas = 2
max_concurrent = 1
idle_pause_s = 3600
idle_snapshot_s = 7200
"""


def report(folder: Path, wakes: int, page: Path | None) -> str:
    """Measure one model, and write the page with all that were measured so far."""
    with tempfile.TemporaryDirectory(prefix="torpor-models-") as scratch:
        row = _measure(folder.resolve(), wakes, Path(scratch))
    figures = page.with_suffix(".json") if page is not None else None
    known: list[dict[str, Any]] = []
    if figures is not None and figures.exists():
        known = json.loads(figures.read_bytes())
    rows = sorted([*(one for one in known if one["name"] != row["name"]), row], key=_size)
    text = render(rows)
    if page is not None and figures is not None:
        figures.write_text(json.dumps(rows, indent=1) + "\n")
        page.write_text(text)
    return text


def _size(row: dict[str, Any]) -> int:
    return int(row["weights_bytes"])


def _measure(folder: Path, wakes: int, scratch: Path) -> dict[str, Any]:
    gateway = Gateway(scratch, CONFIG.replace("{source}", str(folder)))
    print(gateway.torpor("snapshot", "create"), flush=True)
    with gateway.running():
        gateway.ask("model", "")
        hot = [_hot(gateway) for _ in range(wakes)]
        warm = _wakes(gateway, wakes, lambda: None)
        cold = _wakes(gateway, wakes, drop_page_cache)
        (snapshot,) = gateway.root("GET", "snapshots")["data"]
        mappings = _mappings(gateway)
        row = {
            "name": folder.name,
            "weights_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
            "disk_bytes": snapshot["disk_bytes"],
            "memory_bytes": snapshot["memory_bytes"],
            "making_ms": snapshot["ms"],
            "hot_ttft_ms": hot,
            "warm": warm,
            "dropped": cold,
            "mappings": mappings,
            "machine": machine(),
            "kernel": platform.release(),
            "extensions": extensions(),
            "wakes": wakes,
        }
        row["second_replica_bytes"] = _second(gateway)
    return row


def _hot(gateway: Gateway) -> float:
    time.sleep(SETTLE_S)  # as idle as before a wake
    return gateway.ask("model", "")[0]


def _wakes(gateway: Gateway, count: int, prepare: Callable[[], None]) -> list[dict[str, float]]:
    """The phases of each wake, with the time to the first token; the first wake is not counted."""
    measured = []
    for turn in range(count + 1):
        gateway.sleep("snapshot", "model")
        prepare()
        ttft_ms, tier = gateway.ask("model", "")
        if tier != "snapshot":
            raise AssertionError(f"found {tier}, not snapshot")
        time.sleep(SETTLE_S)
        phases: dict[str, float] = gateway.engine("model")["wakes"][-1]["ms"]
        if turn:
            measured.append({**phases, "ttft": ttft_ms})
            print(f"  ready {phases['total']:.0f} ms, TTFT {ttft_ms:.0f} ms", flush=True)
    return measured


def _mappings(gateway: Gateway) -> int:
    """Mappings of all processes of the engine that is awake."""
    maps = (Path(f"/proc/{process.pid}/maps") for process in gateway.engine_processes())
    return sum(len(path.read_text().splitlines()) for path in maps)


def _second(gateway: Gateway) -> int:
    """Bytes (PSS) that a second replica adds, after each of them has answered a request."""
    gateway.sleep("snapshot", "model")
    gateway.ask("model", "")
    time.sleep(MEASURED_AFTER_S)
    first = gateway.engine("model")["memory_bytes"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: gateway.ask("model", ""), range(2)))
    time.sleep(MEASURED_AFTER_S)
    engine = gateway.engine("model")
    if len(engine["replicas"]) != 2:
        raise AssertionError("there is no second replica")
    return int(engine["memory_bytes"] - first)


def extensions() -> str:
    """The processor's vector extensions that matter for a model."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split())
            return ", ".join(name for name in _EXTENSIONS if name in flags) or "none"
    return "not known"


def _median(wakes: list[dict[str, float]], phase: str) -> float:
    return statistics.median(wake[phase] for wake in wakes)


def render(rows: list[dict[str, Any]]) -> str:
    """The page."""
    body, goals = [], []
    smallest = _median(rows[0]["warm"], "total")
    for row in rows:
        warm, dropped = row["warm"], row["dropped"]
        hot = statistics.median(row["hot_ttft_ms"])
        ready, ttft = _median(warm, "total"), _median(warm, "ttft")
        extra, limit = ttft - hot - ready, _SHARE * hot + _EXTRA_MS
        body.append(
            [
                row["name"],
                f"{row['weights_bytes'] / 1e9:.2f}",
                f"{hot:.0f}",
                f"{ready:.0f}",
                f"{ttft - hot:.0f}",
                f"{extra:.0f}",
                f"{limit:.0f}",
                f"{_median(dropped, 'total'):.0f}",
                f"{_median(dropped, 'ttft') - hot:.0f}",
                f"{row['second_replica_bytes'] / 1e6:.0f}",
                f"{row['disk_bytes'] / 1e9:.2f}",
                f"{row['mappings']}",
            ]
        )
        goals.append(
            [
                row["name"],
                f"{ready / smallest:.2f}",
                "yes" if ready / smallest <= _GOAL_RATIO else "NO",
                "yes" if extra <= limit else "NO",
            ]
        )
    heads = [
        "model", "weights GB", "hot TTFT", "ready", "TTFT - hot", "canary and touches", "at most",
        "ready, dropped", "TTFT - hot, dropped", "second replica MB", "disk GB", "mappings",
    ]  # fmt: skip
    phases = [
        [row["name"], *(f"{_median(row['warm'], name):.1f}" for name in ("sandbox", "restore", "answer"))]
        for row in rows
    ]
    counts = [row["wakes"] for row in rows]
    return (
        "\n\n".join(
            [
                HEAD,
                f"{rows[0]['machine']}; vector extensions: {rows[0]['extensions']}. bf16, random weights but "
                f"for smollm2-135m. Medians of {min(counts)} to {max(counts)} wakes, in milliseconds where "
                "nothing else is said.",
                table(heads, body),
                LEGEND,
                table(["model", "ready / smallest", f"at most {_GOAL_RATIO:g}", "canary and touches"], goals),
                "The phases until ready, page cache warm:",
                table(["model", "sandbox", "restore", "answer"], phases),
                EXPLANATION.strip(),
            ]
        )
        + "\n"
    )


HEAD = """# Wakes by the size of the model

    python -m loadtest.random_model SIZE
    python -m loadtest.coldstart --model FOLDER --wakes N --write docs/benchmarks/models.md"""

LEGEND = """*Canary and touches* is what a wake adds to the time to the first token beyond the time to
ready: the canary's rows in the first step, and the page faults of the first pass over the weights. *At most*
is a tenth of the hot TTFT and 100 ms. *Dropped*: with an empty page cache, so that the weights
come from the disk."""

EXPLANATION = """
## What grows with the size, and why

- **Ready** does not depend on the weights: CRIU maps them and reads nothing. It depends on the number of
  mappings, which follows the libraries and the number of layers, not the size of a layer.
- **Canary and touches** grows with both the computation and the weights. The canary computed 16 tokens in the
  first step, which is as much as 16 of the request's own 37 tokens; it computes 3. The first pass over the
  weights took a page fault for every 64 KiB; the memory file is laid out for huge pages (2 MiB).
- **With an empty page cache** the weights come from the disk once, at the disk's speed.
- **A second replica** shares the weights; what it adds is what a process writes to.
- **Disk** is the weights and about 1 GB of what vLLM and torch have imported.
"""
