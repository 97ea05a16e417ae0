"""What Prometheus is told: plain counters that requests raise, and the state of the parts when it asks.

Nothing is computed on the way of a request but a few additions. Labels are of bounded sets: routes, status
classes, codes, models of the configuration; a project's id only where that is configured.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from coldstart.tiers import SleepTier
from engines.status import EngineState, EngineStatus, WakeObserver
from gateway.http.context import RequestRecord
from gateway.telemetry.histograms import Histogram, histogram
from gateway.telemetry.request_metrics import RequestMetrics
from gateway.telemetry.wake_metrics import WakeMetrics

_MAX_CODES = 64
_MAX_PROJECTS = 1_000
_OTHER = "other"
_REFUSALS = frozenset({"rate_limit_exceeded", "insufficient_quota", "queue_full", "queue_timeout"})
_STATUS_CLASSES = ("0xx", "1xx", "2xx", "3xx", "4xx", "5xx")


class MetricSource(Protocol):
    """A part that tells Prometheus of itself. Asked on the event loop: it must take no time to speak of."""

    def metrics(self) -> Iterable[Metric]:
        """Families as they are now: ``prometheus_client.core`` has them. Names begin with ``torpor_``."""


@dataclass(slots=True)
class RequestCounts:
    """Counters of requests since the start. ``by_project``: whether projects are told apart."""

    by_project: bool = False
    _requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _codes: set[str] = field(default_factory=set)
    _authentications: Counter[str] = field(default_factory=Counter)
    _refusals: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_REFUSALS, 0)))
    _errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    _projects: Counter[tuple[str, str]] = field(default_factory=Counter)
    _seen_projects: set[str] = field(default_factory=set)
    _durations: dict[str, Histogram] = field(default_factory=dict)
    served: RequestMetrics = field(default_factory=RequestMetrics)
    """By model and tier; streams add their tokens' times to it as they come."""

    def observe(self, scope: Scope, record: RequestRecord, status: int) -> None:
        """A request has been answered, or its client has gone (499)."""
        endpoint = getattr(scope.get("route"), "path_format", _OTHER)
        outcome = _STATUS_CLASSES[status // 100]
        code = self._code(record.code)
        self._requests[endpoint, outcome, code] += 1
        elapsed_s = record.elapsed_ms() / 1000
        durations = self._durations.get(endpoint)
        if durations is None:
            durations = self._durations[endpoint] = Histogram()
        durations.observe(elapsed_s)
        if record.principal is not None and self.by_project:
            self._projects[self._project(record.principal.project_id), outcome] += 1
        if record.model is None:
            return
        if code:
            self._errors[record.model, code] += 1
            if code in _REFUSALS:
                self._refusals[code] += 1
        self.served.observe(record, elapsed_s)

    def authentication(self, result: str) -> None:
        """A credential was taken (``ok``), or refused for that reason."""
        self._authentications[result] += 1

    def metrics(self) -> Iterator[Metric]:
        """As `MetricSource.metrics`."""
        yield _counter(
            "torpor_requests",
            "Requests that were answered, by route, status class and error code.",
            ("endpoint", "status", "code"),
            self._requests,
        )
        yield _counter(
            "torpor_request_errors",
            "Requests for a model that ended in an error, by its code.",
            ("model", "code"),
            self._errors,
        )
        yield histogram(
            "torpor_request_duration_seconds",
            "From the headers of a request to its end.",
            ("endpoint",),
            (((endpoint,), durations) for endpoint, durations in self._durations.items()),
        )
        yield from self.served.metrics()
        yield _counter(
            "torpor_authentications",
            "Credentials that were looked at, by result.",
            ("result",),
            {(result,): count for result, count in self._authentications.items()},
        )
        yield _counter(
            "torpor_admission_refusals",
            "Requests that a limit, a budget or a queue has refused, by error code.",
            ("code",),
            {(code,): count for code, count in self._refusals.items()},
        )
        if self.by_project:
            yield _counter(
                "torpor_requests_by_project", "Requests by project.", ("project", "status"), self._projects
            )

    def _code(self, code: str | None) -> str:
        """An engine's error has whatever code it likes: the set is bounded."""
        if code is None:
            return ""
        if code not in self._codes:
            if len(self._codes) >= _MAX_CODES or len(code) > 64:
                return _OTHER
            self._codes.add(code)
        return code

    def _project(self, project: str | None) -> str:
        if project is None:
            return ""
        if project not in self._seen_projects:
            if len(self._seen_projects) >= _MAX_PROJECTS:
                return _OTHER
            self._seen_projects.add(project)
        return project


_ADAPTER_COUNTS = (
    ("torpor_adapter_loads", "Loads of adapters into engines.", "loads"),
    ("torpor_adapter_misfits", "Canaries of adapters that differed after a load.", "misfits"),
    ("torpor_engines_given_up", "Engines that were ended for that.", "engines_given_up"),
)


class EngineMetrics:
    """The engines as they are, and their wakes since the start."""

    def __init__(self, host: "Engines") -> None:
        self._host = host
        self._wakes = WakeMetrics(engine.id for engine in host.status())
        host.observe_wakes(self._wakes)

    def metrics(self) -> Iterator[Metric]:
        """As `MetricSource.metrics`."""
        engines = self._host.status()
        state = GaugeMetricFamily(
            "torpor_engine_state", "1 for the state it is in.", labels=["model", "state"]
        )
        tier = GaugeMetricFamily("torpor_engine_tier", "1 for the tier it is in.", labels=["model", "tier"])
        memory = GaugeMetricFamily("torpor_engine_memory_bytes", "PSS of its processes.", labels=["model"])
        in_flight = GaugeMetricFamily("torpor_in_flight", "Requests at the engine.", labels=["model"])
        replicas = GaugeMetricFamily("torpor_engine_replicas", "Engines of the model.", labels=["model"])
        resident = GaugeMetricFamily(
            "torpor_adapters_resident", "Adapters that engines hold, by engine summed.", labels=["model"]
        )
        for engine in engines:
            for engine_state in EngineState:
                state.add_metric([engine.id, engine_state], float(engine.state is engine_state))
            for level in SleepTier:
                tier.add_metric([engine.id, level], float(engine.tier is level))
            memory.add_metric([engine.id], engine.memory_bytes)
            in_flight.add_metric([engine.id], engine.in_flight)
            replicas.add_metric([engine.id], len(engine.replicas))
            resident.add_metric([engine.id], sum(len(replica.adapters) for replica in engine.replicas))
        yield from (state, tier, memory, in_flight, replicas, resident)
        for name, text, what in _ADAPTER_COUNTS:
            counts = {(engine.id,): getattr(engine.adapters, what) for engine in engines}
            yield _counter(name, text, ("model",), counts)
        yield from self._wakes.metrics()


class Engines(Protocol):
    """The part of the host that the metrics use."""

    def status(self) -> list[EngineStatus]:
        """As `EngineHost.status`."""

    def observe_wakes(self, observer: WakeObserver) -> None:
        """As `EngineHost.observe_wakes`."""


class _Collected(Collector):
    def __init__(self, source: MetricSource) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: names of two sources that are alike show when they are collected."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._source.metrics()


def registry_of(sources: Iterable[MetricSource]) -> CollectorRegistry:
    """A registry that asks the sources each time that it is asked, and the kernel about this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for source in sources:
        registry.register(_Collected(source))
    return registry


def gauge(name: str, help_text: str, value: float) -> Metric:
    """A gauge without labels."""
    return GaugeMetricFamily(name, help_text, value=value)


def gauge_by(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    """A gauge with one label, whose values are the keys."""
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, help_text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    """A family with the values of the labels as keys, in that order."""
    family = CounterMetricFamily(name, help_text, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family
