"""The page on wakes by size: what is computed from measured times, and that misses are printed as misses."""

from typing import Any

import pytest

from loadtest.model_wakes import render
from loadtest.wake_costs import Faults, parts


def row(name: str, ready: float, canary: float, touches: float) -> dict[str, Any]:
    """Figures of a model whose hot requests take 200 ms."""
    wake = {
        "sandbox": 1.0, "restore": ready - 3, "answer": 2.0, "total": ready,
        "ttft": 200 + ready + canary + touches, "minor": 10_000, "major": 1,
    }  # fmt: skip
    return {
        "name": name,
        "weights_bytes": 10**9,
        "disk_bytes": 2 * 10**9,
        "touched": {"hot": [200.0], "canary": [200 + canary], "faults": [{"minor": 7, "major": 0}]},
        "warm": [wake],
        "dropped": [wake],
        "mappings": 2800,
        "machine": "2 cores (a processor, AVX2)",
        "dtype": "bfloat16",
        "wakes": 1,
        "second_replica_bytes": 10**8,
    }


def test_the_canary_and_first_touches_are_told_apart() -> None:
    assert parts(row("m", 40, 30, 50)) == {"hot": 200, "canary": 30, "touches": 50, "sum": 80}


@pytest.mark.parametrize(
    ("ready", "touches", "cell"),
    [(60, 90, "yes |         within the limit"), (61, 90, " NO |"), (60, 91, "MISSED")],
)
def test_a_miss_is_printed_as_a_miss(ready: float, touches: float, cell: str) -> None:
    page = render([row("small", 40, 0, 0), row("large", ready, 30, touches)])
    (goals,) = [
        line for line in page.splitlines() if line.startswith("| large") and "." in line.split("|")[2]
    ][-1:]
    assert cell in goals


def test_faults_are_those_since() -> None:
    assert Faults(12, 3).since(Faults(10, 3)) == {"minor": 2, "major": 0}
