"""Wakes and their phases, counted from what the host remembers of the newest ones."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from coldstart.tiers import SleepTier
from engines.status import EngineStatus, Wake
from gateway.telemetry.histograms import WAKES_S, Histogram, histogram

_TOTAL = "total"
_PHASES: dict[SleepTier, tuple[str, ...]] = {
    SleepTier.PAUSED: (),
    SleepTier.SNAPSHOT: ("sandbox", "restore", "answer", "canary"),
    SleepTier.COLD: ("sandbox", "start"),
}
"""By the tier that a wake is from, as `engines.lifecycle.process` tells them."""


class _Counted:
    """A wake, and how many of its phases are counted: the canary's is known when its verdict is."""

    __slots__ = ("phases", "wake")

    def __init__(self, wake: Wake) -> None:
        self.wake = wake
        self.phases: set[str] = set()


class WakeCounts:
    """Since the start, by model, and by the tier that the wake was from."""

    def __init__(self) -> None:
        self._counted: dict[str, list[_Counted]] = {}
        self._wakes: Counter[tuple[str, str]] = Counter()
        self._durations: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(WAKES_S))
        self._phase_s: defaultdict[tuple[str, str, str], float] = defaultdict(float)

    def look(self, engines: Iterable[EngineStatus]) -> None:
        """Count what is new. To be called before the host has forgotten it: it keeps 20 wakes of a model."""
        for engine in engines:
            if engine.id not in self._counted:
                self._begin(engine.id)
            earlier = {id(counted.wake): counted for counted in self._counted.get(engine.id, ())}
            now = [earlier.get(id(wake)) or _Counted(wake) for wake in engine.wakes]
            for counted in now:
                self._count(engine.id, counted)
            self._counted[engine.id] = now

    def _begin(self, model: str) -> None:
        """With zeros: Prometheus sees no increase where a series begins with 1."""
        for tier, phases in _PHASES.items():
            self._wakes[model, tier] = 0
            self._durations[model, tier] = Histogram(WAKES_S)
            for phase in phases:
                self._phase_s[model, tier, phase] = 0.0

    def _count(self, model: str, counted: _Counted) -> None:
        wake = counted.wake
        if not counted.phases:
            self._wakes[model, wake.source] += 1
            self._durations[model, wake.source].observe(wake.ms.get(_TOTAL, 0.0) / 1000)
            counted.phases.add(_TOTAL)
        for phase in wake.ms.keys() - counted.phases:
            counted.phases.add(phase)
            self._phase_s[model, wake.source, phase] += wake.ms[phase] / 1000

    def metrics(self) -> Iterator[Metric]:
        """As `MetricSource.metrics`."""
        wakes = CounterMetricFamily(
            "torpor_wakes", "Wakes, by the tier that they were from.", labels=("model", "tier")
        )
        for key, count in self._wakes.items():
            wakes.add_metric(key, count)
        yield wakes
        yield histogram(
            "torpor_wake_seconds", "How long wakes took.", ("model", "tier"), self._durations.items()
        )
        phases = CounterMetricFamily(
            "torpor_wake_phase_seconds",
            "How long the phases of wakes took, summed; the canary's is after the engine is awake.",
            labels=("model", "tier", "phase"),
        )
        for labels, seconds in self._phase_s.items():
            phases.add_metric(labels, seconds)
        yield phases
