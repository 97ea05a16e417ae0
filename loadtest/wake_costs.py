"""What a wake costs its request beyond the time to ready, part by part.

The canary's computation and the first touches of memory fall into the same step of the engine. They are told
apart with an engine whose memory is touched: it is told that it was restored (`engines.control`), and its
canary is computed in the batch of the next request, as after a restore. What such a request takes longer than
a hot one is the canary; what a request after a restore takes longer still is the first touches.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtest.gateway import TIMEOUT_S
from loadtest.wakes import SETTLE_S, WakingGateway

# Among the fields after the command's name in /proc/PID/stat (proc(5)), where minflt is the 10th of all.
_MINOR, _MAJOR = 7, 9


@dataclass(frozen=True, slots=True)
class Faults:
    """Page faults: served from memory, and from a disk."""

    minor: int
    major: int

    def since(self, earlier: "Faults") -> dict[str, int]:
        """The faults after ``earlier``, as a JSON object."""
        return asdict(Faults(self.minor - earlier.minor, self.major - earlier.major))


def faults(gateway: WakingGateway) -> Faults:
    """The costs of all processes of the engines since they were started or restored."""
    minor = major = 0
    for process in gateway.engine_processes():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        minor += int(fields[_MINOR])
        major += int(fields[_MAJOR])
    return Faults(minor, major)


def touched(gateway: WakingGateway, model: str, count: int) -> dict[str, Any]:
    """TTFT of hot requests (``hot``) and of hot ones with a canary (``canary``), in turn, in milliseconds.

    ``faults`` are those of each request with a canary.
    """
    canary = _recorded(gateway, model)
    measured: dict[str, Any] = {"hot": [], "canary": [], "faults": []}
    for _ in range(count):
        time.sleep(SETTLE_S)
        measured["hot"].append(gateway.ask(model, "")[0])
        time.sleep(SETTLE_S)
        before = faults(gateway)
        _expect_canary(gateway, canary)
        measured["canary"].append(gateway.ask(model, "")[0])
        measured["faults"].append(faults(gateway).since(before))
    return measured


def parts(row: dict[str, Any]) -> dict[str, float]:
    """Medians in milliseconds: ``canary``, ``touches`` and their ``sum`` for a row of `model_wakes`."""
    hot = statistics.median(row["touched"]["hot"])
    canary = statistics.median(row["touched"]["canary"]) - hot
    total = statistics.median(wake["ttft"] - wake["total"] for wake in row["warm"]) - hot
    return {"hot": hot, "canary": canary, "touches": total - canary, "sum": total}


def _recorded(gateway: WakingGateway, model: str) -> Any:
    (path,) = (gateway.folder / ".torpor/snapshots" / model).glob("0*/manifest.json")
    return json.loads(path.read_bytes())["manifest"]["canary"]


def _expect_canary(gateway: WakingGateway, canary: Any) -> None:
    (socket,) = (gateway.folder / ".torpor/run").glob("engine-*/box/s")
    transport = httpx.HTTPTransport(uds=str(socket))
    with httpx.Client(transport=transport, base_url="http://engine", timeout=TIMEOUT_S) as http:
        http.post("/torpor/wake", json=canary).raise_for_status()
