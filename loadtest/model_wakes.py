"""How wakes depend on a model's size: ``python -m loadtest coldstart --model FOLDER --write PAGE``.

Each call measures one model with a gateway of its own and adds a row to the page's figures, which are kept
beside it as JSON: a run takes minutes, and sizes can be measured one by one (`loadtest.random_model`). A
``note`` on a row of the JSON is printed with the figures: what else the machine did, for one.
"""

import concurrent.futures
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.report import machine, table
from loadtest.wake_costs import faults, parts, touched
from loadtest.wakes import MEASURED_AFTER_S, SETTLE_S, WakingGateway, drop_page_cache

_GOAL_RATIO = 1.5
# Of the request's own prefill, and in milliseconds: what the canary and first touches may add to a wake.
_SHARE, _EXTRA_MS = 0.1, 100.0

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
    rows_before: list[dict[str, Any]] = []
    if figures is not None and figures.exists():
        rows_before = json.loads(figures.read_bytes())
    rows = sorted([*(entry for entry in rows_before if entry["name"] != row["name"]), row], key=_size)
    text = render(rows)
    if page is not None and figures is not None:
        figures.write_text(json.dumps(rows, indent=1) + "\n")
        page.write_text(text)
    return text


def _size(row: dict[str, Any]) -> int:
    return int(row["weights_bytes"])


def _measure(folder: Path, wakes: int, scratch: Path) -> dict[str, Any]:
    gateway = WakingGateway(scratch, CONFIG.replace("{source}", str(folder)))
    print(gateway.torpor("snapshot", "create"), flush=True)
    with gateway.serving():
        gateway.ask("model", "")
        gateway.ask("model", "")
        hot = touched(gateway, "model", wakes)
        warm = _wakes(gateway, wakes, lambda: None)
        cold = _wakes(gateway, wakes, drop_page_cache)
        (snapshot,) = gateway.request("GET", "/v1/torpor/snapshots")["data"]
        mappings = _mappings(gateway)
        row = {
            "name": folder.name,
            "weights_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
            "disk_bytes": snapshot["disk_bytes"],
            "memory_bytes": snapshot["memory_bytes"],
            "making_ms": snapshot["ms"],
            "touched": hot,
            "warm": warm,
            "dropped": cold,
            "mappings": mappings,
            "dtype": gateway.engine("model")["sizing"]["dtype"],
            "machine": machine(),
            "wakes": wakes,
        }
        row["second_replica_bytes"] = _second(gateway)
    return row


def _wakes(gateway: WakingGateway, count: int, prepare: Callable[[], None]) -> list[dict[str, float]]:
    """The phases of each wake, with the time to the first token; the first wake is not counted."""
    measured = []
    for turn in range(count + 1):
        gateway.sleep("snapshot", "model")
        prepare()
        ttft_ms, tier = gateway.ask("model", "")
        seen = asdict(faults(gateway))
        if tier != "snapshot":
            raise AssertionError(f"found {tier}, not snapshot")
        time.sleep(SETTLE_S)
        phases: dict[str, float] = gateway.engine("model")["wakes"][-1]["ms"]
        if turn:
            measured.append({**phases, **seen, "ttft": ttft_ms})
            print(f"  ready {phases['total']:.0f} ms, TTFT {ttft_ms:.0f} ms", flush=True)
    return measured


def _mappings(gateway: WakingGateway) -> int:
    """Mappings of all processes of the engine that is awake."""
    maps = (Path(f"/proc/{process.pid}/maps") for process in gateway.engine_processes())
    return sum(len(path.read_text().splitlines()) for path in maps)


def _second(gateway: WakingGateway) -> int:
    """Bytes that a second replica adds, after each of them has answered a request."""
    gateway.sleep("snapshot", "model")
    gateway.ask("model", "")
    time.sleep(MEASURED_AFTER_S)
    first = _pss(gateway)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: gateway.ask("model", ""), range(2)))
    time.sleep(MEASURED_AFTER_S)
    if len(gateway.engine("model")["replicas"]) != 2:
        raise AssertionError("there is no second replica")
    return _pss(gateway) - first


def _pss(gateway: WakingGateway) -> int:
    """Bytes of all replicas together, at one time: what they share counts once.

    The gateway measures each replica twice a minute: what it says of the first is from before the second.
    """
    return sum(process.memory_full_info().pss for process in gateway.engine_processes())


def _median(wakes: list[dict[str, float]], phase: str) -> float:
    return statistics.median(wake[phase] for wake in wakes)


def render(rows: list[dict[str, Any]]) -> str:
    """The page."""
    counts = sorted({row["wakes"] for row in rows})
    types = sorted({row["dtype"] for row in rows})
    machines = sorted({row["machine"] for row in rows})
    return (
        "\n\n".join(
            [
                HEAD,
                f"{'; '.join(machines)}. Computed in {' and '.join(types)}; the weights are random but for "
                f"smollm2-135m. Medians of {' or '.join(map(str, counts))} wakes, in milliseconds unless "
                "another unit is given.",
                table(_SIZES, [_sizes(row) for row in rows]),
                SIZES.strip(),
                *(f"{row['name']}: {row['note']}" for row in rows if "note" in row),
                "## The canary and the first touches of memory",
                table(_COSTS, [_costs(row) for row in rows]),
                COSTS.strip(),
                "## Until ready",
                table(_PHASES, [_phases(row) for row in rows]),
                "## Goals",
                table(_GOALS, [_goals(row, rows[0]) for row in rows]),
                EXPLANATION.strip(),
            ]
        )
        + "\n"
    )


_SIZES = [
    "model", "weights GB", "hot TTFT", "ready", "TTFT - hot", "ready, dropped", "TTFT - hot, dropped",
    "second replica MB", "disk GB",
]  # fmt: skip


def _sizes(row: dict[str, Any]) -> list[str]:
    hot = parts(row)["hot"]
    return [
        row["name"],
        f"{row['weights_bytes'] / 1e9:.2f}",
        f"{hot:.0f}",
        f"{_median(row['warm'], 'total'):.0f}",
        f"{_median(row['warm'], 'ttft') - hot:.0f}",
        f"{_median(row['dropped'], 'total'):.0f}",
        f"{_median(row['dropped'], 'ttft') - hot:.0f}",
        f"{row['second_replica_bytes'] / 1e6:.0f}",
        f"{row['disk_bytes'] / 1e9:.2f}",
    ]


_COSTS = [
    "model", "canary", "first touches", "together", "at most", "faults of a wake", "of them from disk",
    "the same, dropped", "faults of a hot request with a canary",
]  # fmt: skip


def _costs(row: dict[str, Any]) -> list[str]:
    cost = parts(row)
    return [
        row["name"],
        f"{cost['canary']:.0f}",
        f"{cost['touches']:.0f}",
        f"{cost['sum']:.0f}",
        f"{_limit(row):.0f}",
        f"{_median(row['warm'], 'minor') + _median(row['warm'], 'major'):.0f}",
        f"{_median(row['warm'], 'major'):.0f}",
        f"{_median(row['dropped'], 'major'):.0f}",
        f"{_median(row['touched']['faults'], 'minor'):.0f}",
    ]


_PHASES = ["model", "sandbox", "restore", "answer", "mappings"]


def _phases(row: dict[str, Any]) -> list[str]:
    names = ("sandbox", "restore", "answer")
    return [row["name"], *(f"{_median(row['warm'], name):.1f}" for name in names), f"{row['mappings']}"]


_GOALS = ["model", "ready / smallest", f"at most {_GOAL_RATIO:g}", "canary and first touches"]


def _goals(row: dict[str, Any], smallest: dict[str, Any]) -> list[str]:
    ratio = _median(row["warm"], "total") / _median(smallest["warm"], "total")
    within = parts(row)["sum"] <= _limit(row)
    return [
        row["name"],
        f"{ratio:.2f}",
        "yes" if ratio <= _GOAL_RATIO else "NO",
        "within the limit" if within else "MISSED",
    ]


def _limit(row: dict[str, Any]) -> float:
    return _SHARE * parts(row)["hot"] + _EXTRA_MS


HEAD = """# Wakes by the size of the model

    python -m loadtest random-model SIZE
    python -m loadtest coldstart --model FOLDER --wakes N --write docs/benchmarks/models.md"""

SIZES = """
*TTFT - hot* is what a client waits longer than for a hot engine. *Dropped*: with an empty page cache;
what a wake needs comes from the disk. The prompt has 37 tokens.
"""

COSTS = """
*Canary* is what a hot request takes longer in one batch with a canary. *First touches* is what a request
after a restore takes longer still, time to ready not counted: page faults of the first pass over the weights,
and copies of the pages that it writes to. *At most* is a tenth of the hot TTFT, which is the request's own
prefill, and 100 ms. Faults are counted from the restore to the end of the first answer
(`loadtest/wake_costs.py`).
"""

EXPLANATION = """
## What grows with the size, and why

- **Ready** does not grow: a restore maps the weights and reads nothing of them. What it takes follows the
  number of mappings, most of which are of libraries.
- **The canary** grows with the computation: it adds 3 tokens to a step that computes 37.
- **First touches** grow with the weights: the first pass over them takes page faults. Where the page cache
  holds them in blocks of 2 MiB, for which the memory file is laid out, one fault maps a block; where it holds
  smaller ones, as it does when no larger piece of memory is free, one fault maps at most 64 KiB.
- **With an empty page cache** the first pass reads the weights from the disk.
- **A second replica** shares the weights, and adds what a replica writes to.
- **Disk** is the weights and about 1 GB of what vLLM and torch have imported.
"""
