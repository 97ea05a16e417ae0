"""Wakes of engines and their phases, counted as the host reports them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from coldstart.tiers import SleepTier
from engines.status import Wake
from gateway.telemetry.histograms import WAKES_S, Histogram, histogram

_TOTAL = "total"
_PHASES: dict[SleepTier, tuple[str, ...]] = {
    SleepTier.PAUSED: (),
    SleepTier.SNAPSHOT: ("sandbox", "restore", "answer", "canary"),
    SleepTier.COLD: ("sandbox", "start"),
}
"""The phases of a wake by its tier, as `engines.lifecycle.process` names them."""


class WakeMetrics:
    """Counts of wakes since the start, by model and by the tier that the wake was from (a `WakeObserver`).

    All series of the models begin with 0, because Prometheus sees no increase in a series that begins with 1.
    """

    def __init__(self, models: Iterable[str]) -> None:
        self._wakes: Counter[tuple[str, str]] = Counter()
        self._durations: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(WAKES_S))
        self._phase_s: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        for model in models:
            for tier, phases in _PHASES.items():
                self._wakes[model, tier] = 0
                self._durations[model, tier] = Histogram(WAKES_S)
                for phase in phases:
                    self._phase_s[model, tier, phase] = 0.0

    def on_wake(self, model_id: str, wake: Wake) -> None:
        """Count a wake and its phases."""
        self._wakes[model_id, wake.source] += 1
        self._durations[model_id, wake.source].observe(wake.ms.get(_TOTAL, 0.0) / 1000)
        self._add_phases(model_id, wake.source, wake.ms)

    def on_canary(self, model_id: str, tier: SleepTier, ms: Mapping[str, float]) -> None:
        """Add the phases of a canary that has passed after a wake from the tier, milliseconds."""
        self._add_phases(model_id, tier, ms)

    def _add_phases(self, model_id: str, tier: SleepTier, ms: Mapping[str, float]) -> None:
        for phase, duration_ms in ms.items():
            if phase != _TOTAL:
                self._phase_s[model_id, tier, phase] += duration_ms / 1000

    def metrics(self) -> Iterator[Metric]:
        """As `MetricSource.metrics`."""
        wakes = CounterMetricFamily(
            "torpor_wakes", "Wakes by the tier that they were from.", labels=("model", "tier")
        )
        for key, count in self._wakes.items():
            wakes.add_metric(key, count)
        yield wakes
        yield histogram(
            "torpor_wake_seconds", "Duration of wakes in seconds.", ("model", "tier"), self._durations.items()
        )
        phases = CounterMetricFamily(
            "torpor_wake_phase_seconds",
            "Seconds spent in the phases of wakes; the canary runs after the engine is awake.",
            labels=("model", "tier", "phase"),
        )
        for labels, seconds in self._phase_s.items():
            phases.add_metric(labels, seconds)
        yield phases
