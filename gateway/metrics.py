"""What Prometheus is told: plain counters that requests raise, and the state of the parts when it asks.

Nothing is computed on the way of a request but a few additions. Labels are of bounded sets: routes, status
classes, codes, models of the configuration; a project's id only where that is configured.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from coldstart.tiers import SleepTier
from engines.status import EngineState, EngineStatus, Wake
from gateway.context import RequestRecord

_MAX_CODES = 64
_MAX_PROJECTS = 1_000
_OTHER = "other"
_REFUSALS = frozenset({"rate_limit_exceeded", "insufficient_quota", "queue_full", "queue_timeout"})
_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class MetricSource(Protocol):
    """A part that tells Prometheus of itself. Asked on the event loop: it must take no time to speak of."""

    def metrics(self) -> Iterable[Metric]:
        """Families as they are now: ``prometheus_client.core`` has them. Names begin with ``torpor_``."""


class Durations:
    """A histogram of seconds by one label."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(_BOUNDS_S) + 1))
        self._sums: defaultdict[str, float] = defaultdict(float)

    def observe(self, label: str, seconds: float) -> None:
        """One more of that duration."""
        self._counts[label][bisect_left(_BOUNDS_S, seconds)] += 1
        self._sums[label] += seconds

    def family(self, name: str, help_text: str, label: str) -> Metric:
        """Prometheus' own form: each bucket holds those below it as well."""
        family = HistogramMetricFamily(name, help_text, labels=[label])
        for value, counts in self._counts.items():
            buckets, total = [], 0
            for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric([value], buckets, self._sums[value])
        return family


@dataclass(slots=True)
class RequestCounts:
    """Counters of requests since the start. ``by_project``: whether projects are told apart."""

    by_project: bool = False
    _requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _codes: set[str] = field(default_factory=set)
    _authentications: Counter[str] = field(default_factory=Counter)
    _refusals: Counter[str] = field(default_factory=Counter)
    _tiers: Counter[tuple[str, str]] = field(default_factory=Counter)
    _tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    _projects: Counter[tuple[str, str]] = field(default_factory=Counter)
    _seen_projects: set[str] = field(default_factory=set)
    _durations: Durations = field(default_factory=Durations)
    _first_tokens: Durations = field(default_factory=Durations)

    def observe(self, scope: Scope, record: RequestRecord, status: int) -> None:
        """A request has been answered, or its client has gone (499)."""
        endpoint = getattr(scope.get("route"), "path", _OTHER)
        outcome = f"{status // 100}xx"
        self._requests[endpoint, outcome, self._code(record.code)] += 1
        self._durations.observe(endpoint, record.elapsed_ms() / 1000)
        if record.principal is not None and self.by_project:
            self._projects[self._project(record.principal.project_id), outcome] += 1
        if record.model is None:
            return
        if record.code in _REFUSALS:
            self._refusals[record.code] += 1
        if record.tier is not None:
            self._tiers[record.model, record.tier] += 1
        if record.ttft_ms is not None:
            self._first_tokens.observe(record.model, record.ttft_ms / 1000)
        if record.usage is not None:
            self._tokens[record.model, "input"] += record.usage.input_tokens
            self._tokens[record.model, "cached"] += record.usage.cached_tokens
            self._tokens[record.model, "output"] += record.usage.output_tokens

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
        yield self._durations.family(
            "torpor_request_duration_seconds", "From the headers of a request to its end.", "endpoint"
        )
        yield self._first_tokens.family(
            "torpor_time_to_first_token_seconds",
            "From the headers of a request to the first of its answer, a wake included.",
            "model",
        )
        yield _counter(
            "torpor_requests_by_tier",
            "Requests by the tier in which they found the engine.",
            ("model", "tier"),
            self._tiers,
        )
        yield _counter("torpor_tokens", "Tokens that were metered.", ("model", "kind"), self._tokens)
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
    """The engines as they are, and their wakes.

    The host remembers the newest wakes of each model: those that are new since Prometheus last asked are
    added to the counters, so that it must ask before there are more of them than are remembered.
    """

    def __init__(self, host: "Engines") -> None:
        self._host = host
        self._wakes: Counter[tuple[str, str]] = Counter()
        self._wake_seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._counted: dict[str, tuple[Wake, ...]] = {}

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
            for one in EngineState:
                state.add_metric([engine.id, one], float(engine.state is one))
            for level in SleepTier:
                tier.add_metric([engine.id, level], float(engine.tier is level))
            memory.add_metric([engine.id], engine.memory_bytes)
            in_flight.add_metric([engine.id], engine.in_flight)
            replicas.add_metric([engine.id], len(engine.replicas))
            resident.add_metric([engine.id], sum(len(replica.adapters) for replica in engine.replicas))
            self._count(engine)
        yield from (state, tier, memory, in_flight, replicas, resident)
        for name, text, what in _ADAPTER_COUNTS:
            counts = {(engine.id,): getattr(engine.adapters, what) for engine in engines}
            yield _counter(name, text, ("model",), counts)
        labels = ("model", "tier")
        yield _counter("torpor_wakes", "Wakes, by the tier that they were from.", labels, self._wakes)
        yield _counter("torpor_wake_seconds", "How long wakes took, summed.", labels, self._wake_seconds)

    def _count(self, engine: EngineStatus) -> None:
        earlier = self._counted.get(engine.id, ())
        for wake in engine.wakes:
            if not any(wake is counted for counted in earlier):
                self._wakes[engine.id, wake.source] += 1
                self._wake_seconds[engine.id, wake.source] += wake.ms.get("total", 0.0) / 1000
        self._counted[engine.id] = engine.wakes


class Engines(Protocol):
    """The part of the host that is asked."""

    def status(self) -> list[EngineStatus]:
        """As `EngineHost.status`."""


class _Collected(Collector):
    def __init__(self, source: MetricSource) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: names of two sources that are alike show when they are collected."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._source.metrics()


def registry_of(sources: Iterable[MetricSource]) -> CollectorRegistry:
    """A registry that asks the sources each time that it is asked."""
    registry = CollectorRegistry()
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
