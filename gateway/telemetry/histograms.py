"""Histograms that cost the event loop next to nothing: a search in a short tuple, and two additions.

Prometheus' own client takes a lock at each observation, which is of no use on one event loop, and three
times as long.
"""

from bisect import bisect_left
from collections.abc import Iterable

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric

DURATIONS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""For what a request takes, and what it waits for."""
WAKES_S = (
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
"""For what an engine takes to wake, from a snapshot or from nothing."""
GAPS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
"""For the time between two tokens."""


class Histogram:
    """Durations in seconds, counted by the smallest of the rising ``bounds`` that they do not exceed."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...] = DURATIONS_S) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    @property
    def empty(self) -> bool:
        """Whether nothing has been observed."""
        return not any(self._counts)

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Prometheus' own form: each bucket holds those below it as well."""
        buckets, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(labels, buckets, self._sum)


def histogram(
    name: str, help_text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], Histogram]]
) -> Metric:
    """A family of them, each with the values of the labels."""
    family = HistogramMetricFamily(name, help_text, labels=labels)
    for key, value in values:
        value.add_to(family, list(key))
    return family
