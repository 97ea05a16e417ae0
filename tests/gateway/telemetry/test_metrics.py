"""What Prometheus is told: of requests, of wakes, and what of it the document and the dashboard name."""

import asyncio
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from coldstart.tiers import SleepTier
from engines.status import EngineState, EngineStatus, Wake, WakeObserver
from gateway.http.context import RequestRecord
from gateway.telemetry.histograms import DURATIONS_S, GAPS_S, WAKES_S, Histogram, histogram
from gateway.telemetry.metrics import EngineMetrics, MetricSource, RequestCounts, registry_of
from tests.engines.support import host
from tests.gateway.app_fixture import Stage, stage_at
from tests.gateway.inference.test_queues import crowded
from tests.gateway.inference.test_queues import waiting as queued
from tests.process import REPOSITORY

_DOCUMENT = REPOSITORY / "docs/reference/metrics.md"
_DASHBOARD = REPOSITORY / "docs/reference/grafana.json"


def told(*sources: MetricSource) -> dict[str, float]:
    """The samples, by name and labels as Prometheus writes them."""
    text = generate_latest(registry_of(sources)).decode()
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def families(stage: Stage) -> Iterator[Metric]:
    """All that there is, also what is told of projects."""
    stage.services.counts.by_project = True
    yield from registry_of(stage.services.metric_sources()).collect()


async def streamed(stage: Stage, **fields: Any) -> int:
    """The status of a stream that is read to its end."""
    body = {"model": "near", "messages": [{"role": "user", "content": "Hi"}], "stream": True, **fields}
    async with stage.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        await answer.aread()
        return answer.status_code


async def test_requests_are_told_by_model_and_tier(standin: str, tmp_path: Path) -> None:
    async with stage_at(tmp_path, standin) as stage:
        assert await streamed(stage) == 200
        only_streams = told(stage.services.counts)
        assert (await stage.ask()).status_code == 200
        after = told(stage.services.counts)
    hot = "model=near tier=hot"
    for name in ("time_to_first_token", "inference_duration", "queue_wait"):
        assert only_streams[f"torpor_{name}_seconds_count {hot}"] == 1
    assert only_streams[f"torpor_inter_token_latency_seconds_count {hot}"] >= 1
    first = only_streams[f"torpor_time_to_first_token_seconds_sum {hot}"]
    gaps = only_streams[f"torpor_inter_token_latency_seconds_sum {hot}"]
    assert 0 < first < first + gaps < only_streams[f"torpor_inference_duration_seconds_sum {hot}"]
    assert after[f"torpor_requests_by_tier_total {hot}"] == 2
    assert after[f"torpor_inference_duration_seconds_count {hot}"] == 2
    for name in ("time_to_first_token", "inter_token_latency"):
        of_streams = f"torpor_{name}_seconds_count {hot}"
        assert after[of_streams] == only_streams[of_streams], "a whole answer has no first token"
    assert f"torpor_wake_wait_seconds_count {hot}" not in after
    output = "torpor_tokens_total kind=output model=near"
    assert after[output] > only_streams[output] > 0


async def test_errors_are_told_by_model_and_code(tmp_path: Path) -> None:
    async with stage_at(tmp_path, "http://127.0.0.1:9") as stage:
        assert (await stage.ask()).status_code == 502
        assert (await stage.ask(model="nobody")).status_code == 404
        after = told(stage.services.counts)
    assert after["torpor_request_errors_total code=engine_failed model=near"] == 1
    assert not any(name.startswith("torpor_inference_duration") for name in after), "none was completed"
    requests = "torpor_requests_total code=model_not_found endpoint=/v1/chat/completions status=4xx"
    assert after[requests] == 1
    assert not any("nobody" in name for name in after), "a caller's word is not a label"


async def test_the_wait_for_a_turn_is_told(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (stage, engine):
        request = [asyncio.create_task(stage.ask("first"))]
        assert await engine.has("first")
        request.append(asyncio.create_task(stage.ask("second")))
        await queued(stage, 1)
        await asyncio.sleep(0.05)
        engine.end()
        await asyncio.gather(*request)
        after = told(stage.services.counts)
    assert after["torpor_queue_wait_seconds_count model=near tier=hot"] == 2
    assert after["torpor_queue_wait_seconds_sum model=near tier=hot"] >= 0.05


async def test_lag_and_process_are_told(stage: Stage) -> None:
    assert await stage.services.ledger.applied()
    after = told(*stage.services.metric_sources())
    assert after["torpor_ledger_lag_seconds stage=journal"] == 0
    assert after["torpor_ledger_lag_seconds stage=database"] == 0
    assert after["process_resident_memory_bytes"] > 0


class StandInHost:
    """Stands for the engine host: one model, whose wakes are reported when a test says so."""

    def __init__(self) -> None:
        self.observers: list[WakeObserver] = []

    def status(self) -> list[EngineStatus]:
        return [EngineStatus(id="m", state=EngineState.READY, tier=SleepTier.HOT)]

    def observe_wakes(self, observer: WakeObserver) -> None:
        self.observers.append(observer)

    def wake(self, total_ms: float = 250.0) -> None:
        phases_ms = {"restore": total_ms - 50, "answer": 50.0, "total": total_ms}
        for observer in self.observers:
            observer.on_wake("m", Wake(1.0, SleepTier.SNAPSHOT, phases_ms))

    def verify(self, **phases_ms: float) -> None:
        for observer in self.observers:
            observer.on_canary("m", SleepTier.SNAPSHOT, phases_ms)


def test_a_wake_is_counted_once_and_each_of_its_phases() -> None:
    engines = StandInHost()
    metrics = EngineMetrics(engines)
    labels = "model=m tier=snapshot"
    assert told(metrics)[f"torpor_wakes_total {labels}"] == 0
    engines.wake()
    for _ in range(2):
        assert told(metrics)[f"torpor_wakes_total {labels}"] == 1
    engines.verify(canary=30.0)
    for _ in range(2):
        after = told(metrics)
    assert after[f"torpor_wakes_total {labels}"] == 1
    assert after[f"torpor_wake_seconds_sum {labels}"] == pytest.approx(0.25)
    phases = {
        phase: after[f"torpor_wake_phase_seconds_total model=m phase={phase} tier=snapshot"]
        for phase in ("restore", "answer", "canary")
    }
    assert phases == pytest.approx({"restore": 0.2, "answer": 0.05, "canary": 0.03})
    assert "torpor_wake_phase_seconds_total model=m phase=total tier=snapshot" not in after


def test_no_wake_is_missed_however_seldom_prometheus_asks() -> None:
    """The host itself remembers only 20 of them."""
    engines = StandInHost()
    metrics = EngineMetrics(engines)
    for _ in range(75):
        engines.wake()
    assert told(metrics)["torpor_wakes_total model=m tier=snapshot"] == 75


async def test_wakes_of_a_real_host_are_told_with_their_phases() -> None:
    others: list[int] = []
    with tempfile.TemporaryDirectory(prefix="torpor-") as run_dir:
        async with host(Path(run_dir)) as engines:
            engines.watch(lambda _model, _pool, awake: others.append(awake))
            metrics = EngineMetrics(engines)
            assert told(metrics)["torpor_wakes_total model=model tier=cold"] == 0
            async with engines.acquire("model"):
                after = told(metrics)
    assert others == [1], "who has watched before is told as well"
    cold = "model=model tier=cold"
    assert after[f"torpor_wakes_total {cold}"] == after[f"torpor_wake_seconds_count {cold}"] == 1
    phases = [
        after[f"torpor_wake_phase_seconds_total model=model phase={phase} tier=cold"]
        for phase in ("sandbox", "start")
    ]
    assert 0 < sum(phases) <= after[f"torpor_wake_seconds_sum {cold}"]


def test_a_histogram_has_each_duration_in_its_bucket_and_those_above() -> None:
    item = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        item.observe(seconds)
    (family,) = [histogram("torpor_x", "told", ("model",), [(("m",), item)])]
    assert {(s.name, s.labels.get("le")): s.value for s in family.samples} == {
        ("torpor_x_bucket", "0.1"): 2,
        ("torpor_x_bucket", "1.0"): 3,
        ("torpor_x_bucket", "+Inf"): 4,
        ("torpor_x_count", None): 4,
        ("torpor_x_sum", None): pytest.approx(7.65),
    }
    for bounds in (DURATIONS_S, WAKES_S, GAPS_S):
        assert sorted(bounds) == list(bounds)


def _labels(family: Metric) -> set[str]:
    return set(getattr(family, "_labelnames", ()))


async def test_the_document_has_every_metric_with_its_labels(stage: Stage) -> None:
    there = {
        family.name + ("_total" if family.type == "counter" else ""): _labels(family)
        for family in families(stage)
        if family.name.startswith("torpor_")
    }
    documented = {}
    for line in _DOCUMENT.read_text().splitlines():
        if line.startswith("| `torpor_"):
            _, names, labels, _ = line.split("|", 3)
            for name in re.findall(r"`(\w+)`", names):
                documented[name] = set(re.findall(r"`(\w+)`", labels))
    assert documented == there


async def test_the_dashboard_names_what_there_is(stage: Stage) -> None:
    """Each name, with the labels that its queries select and group by."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    there: dict[str, set[str]] = {}
    for family in families(stage):
        for ending in endings.get(family.type, ("",)):
            labels = {"le"} if ending == "_bucket" else set()
            # Prometheus itself gives each sample its job and its instance.
            there[family.name + ending] = _labels(family) | labels | {"job", "instance"}
    named: set[str] = set()
    for query in _queries():
        for result in re.finditer(r"\b((?:torpor|process)_\w+)(?:\{([^}]*)\})?", query):
            name, selected = result[1], result[2] or ""
            named.add(name)
            assert name in there, query
            expected = set(re.findall(r"(\w+)\s*(?:=~|!=|=)", selected))
            for grouped in re.findall(r"\bby \(([^)]*)\)", query[: result.start()])[-1:]:
                expected |= set(re.split(r",\s*", grouped))
            assert expected <= there[name], query
    assert {name for name in there if name.startswith("torpor_")} - named <= _sums_and_counts(there)


def _sums_and_counts(there: dict[str, set[str]]) -> set[str]:
    return {
        name for name in there if re.sub("_(sum|count)$", "_bucket", name) in there and "_bucket" not in name
    }


def _queries() -> list[str]:
    board = json.loads(_DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 40
    return queries


def test_the_dashboards_panels_lie_beside_each_other() -> None:
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        position = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not taken & cells
        assert max(x for x, _ in cells) < 24
        assert panel["type"] == "row" or panel["description"]
        taken |= cells


def test_codes_of_no_bound_are_one_label() -> None:
    """An engine's error has whatever code it likes."""
    counts = RequestCounts()
    for number in range(200):
        record = RequestRecord(f"req_{number}", model="near", code=f"code {number}")
        counts.observe({}, record, 400)
    after = told(counts)
    errors = {name: value for name, value in after.items() if name.startswith("torpor_request_errors_total")}
    assert len(errors) == 65
    assert errors["torpor_request_errors_total code=other model=near"] == 136
