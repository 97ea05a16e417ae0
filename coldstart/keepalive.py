"""How long an engine stays awake after its last request, and when it is woken before the next one.

`HybridHistogram` is the policy of Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020, section 4.2),
for one model. It differs from the paper in four places:

- **Forecast.** Where most idle times are longer than the histogram's range, the paper fits ARIMA. Here it is
  the mean and the deviation of the last eight such idle times, and none where they deviate by more than a
  quarter of their mean. That foresees a steady period; it sees no trend and no alternation, which ARIMA may.
- **Standard keep-alive.** The paper's is as long as the range. Here it is a setting of its own, since waking
  from a snapshot costs a tenth of a second.
- **Forgetting.** The paper's production system weighs one histogram a day. Here the histogram holds the last
  ``remember`` idle times.
- **Short sleeps.** A head below one bin of a minute means in the paper that the engine stays awake. Bins may
  be shorter here, so the shortest sleep before a wake is a setting of its own, ``least_sleep_s``.

Nothing here reads a clock or draws a random number.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, stdev
from typing import Any, Literal, Protocol, Self

_STATE_VERSION = 1
_LONGEST_IDLE_S = 1e9
_MOST_BINS = 1_000_000
_FORECAST_FROM = 8
_FORECAST_AT_LEAST = 3
_FORECAST_DEVIATION = 0.25


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """What to do with an engine that has become idle. Times in seconds.

    With ``prewake_after_s`` 0: stay awake for ``keep_alive_s`` from the end of the last request, then sleep.
    Else: sleep at once, wake ``prewake_after_s`` after the end of the last request, and stay awake for
    ``keep_alive_s`` from then on; a wake that takes long is better begun earlier by as much. ``source``: what
    it was derived from.
    """

    prewake_after_s: float
    keep_alive_s: float
    source: Literal["histogram", "fixed", "forecast"]


class KeepAlivePolicy(Protocol):
    """One model's policy. An idle time: from the end of the last request in flight to the next arrival."""

    def observe_idle(self, idle_s: float) -> None:
        """Record an idle time that has ended, seconds. Raises ValueError for what is not one."""

    def windows(self) -> KeepAlive:
        """What to do with the idle time that begins now."""


@dataclass(frozen=True, slots=True)
class FixedKeepAlive:
    """The same keep-alive always."""

    keep_alive_s: float

    def __post_init__(self) -> None:
        _require(0 <= self.keep_alive_s < math.inf, "keep_alive_s is a finite number of seconds, not below 0")

    def observe_idle(self, idle_s: float) -> None:
        """Learns nothing. Raises ValueError as every policy does."""
        _require_idle_time(idle_s)

    def windows(self) -> KeepAlive:
        """The fixed keep-alive."""
        return KeepAlive(0.0, self.keep_alive_s, "fixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramSettings:
    """Settings of `HybridHistogram`. Raises ValueError for those that cannot work.

    Bins, range, percentiles and margins are the paper's by default; so are the two thresholds.

    ``bin_s`` and ``range_s``: width of a bin and range of the histogram, seconds. ``standard_keep_alive_s``:
    used while the histogram says nothing. ``min_samples``: idle times within the range before it may.
    ``remember``: idle times that are kept. ``head_percent``, ``tail_percent``, ``margin``: the percentiles
    between which the engine is awake, and the share by which that is widened on each side. ``least_sleep_s``:
    an engine that would be woken sooner than this after it became idle stays awake instead.
    ``min_variation``: coefficient of variation of the bins' counts below which the histogram says nothing.
    ``max_out_of_range``: share of idle times beyond the range above which the forecast is asked.
    ``forecast_margin``: as ``margin``, for it.
    """

    bin_s: float = 60.0
    range_s: float = 4 * 3600.0
    standard_keep_alive_s: float = 600.0
    min_samples: int = 10
    remember: int = 1000
    head_percent: int = 5
    tail_percent: int = 99
    margin: float = 0.1
    least_sleep_s: float = 54.0
    min_variation: float = 2.0
    max_out_of_range: float = 0.5
    forecast_margin: float = 0.15

    def __post_init__(self) -> None:
        _require(0 < self.bin_s <= self.range_s <= _LONGEST_IDLE_S, "not 0 < bin_s <= range_s <= 1e9")
        _require(self.range_s / self.bin_s <= _MOST_BINS, f"more than {_MOST_BINS} bins: bin_s is too small")
        for name in ("standard_keep_alive_s", "least_sleep_s", "min_variation"):
            _require(0 <= getattr(self, name) < math.inf, f"{name} is a finite number, not below 0")
        _require(1 <= self.min_samples <= self.remember, "not 1 <= min_samples <= remember")
        percents = 0 < self.head_percent <= self.tail_percent <= 100
        _require(percents, "not 0 < head_percent <= tail_percent <= 100")
        for name in ("margin", "max_out_of_range", "forecast_margin"):
            _require(0 <= getattr(self, name) < 1, f"{name} is a share: from 0 to below 1")
        # n bins vary by at most sqrt(n - 1), all in one; k idle times in as many bins by sqrt(n / k - 1).
        varies_by = math.sqrt(self.bins - 1)
        _require(varies_by >= self.min_variation, f"{self.bins} bins never vary by min_variation")
        least = math.ceil(self.bins / (self.min_variation**2 + 1))
        _require(
            self.remember >= least, f"{self.bins} bins are never flat unless remember is {least} or more"
        )

    @property
    def bins(self) -> int:
        """How many bins there are; the last one ends with the range or beyond it."""
        return math.ceil(self.range_s / self.bin_s)


class HybridHistogram:
    """Learns from one model's idle times when its next request is to be expected."""

    def __init__(self, settings: HistogramSettings | None = None) -> None:
        self._settings = settings or HistogramSettings()
        self._recent: deque[float] = deque()
        self._counts = [0] * self._settings.bins
        self._variation = _Variation(self._settings.bins)
        self._in_range = 0

    def observe_idle(self, idle_s: float) -> None:
        """Count an idle time, and forget the oldest where there are too many. Raises ValueError."""
        _require_idle_time(idle_s)
        self._recent.append(float(idle_s))
        self._count(idle_s, 1)
        if len(self._recent) > self._settings.remember:
            self._count(self._recent.popleft(), -1)

    def windows(self) -> KeepAlive:
        """From the forecast where most idle times are beyond the range, else from the histogram."""
        settings = self._settings
        out_of_range = len(self._recent) - self._in_range
        if out_of_range > settings.max_out_of_range * len(self._recent):
            return self._forecast() or self._standard()
        if self._in_range < settings.min_samples or self.variation < settings.min_variation:
            return self._standard()
        head_s, tail_s = self.head_and_tail()
        from_s = head_s * (1 - settings.margin)
        if from_s < settings.least_sleep_s:
            from_s = 0.0
        return _between(from_s, tail_s * (1 + settings.margin), "histogram")

    def head_and_tail(self) -> tuple[float, float]:
        """The two percentiles (nearest rank) of the idle times in range, seconds.

        The head is the lower edge of its bin, the tail the upper edge of its own. Without any idle time in
        range both are those of the first bin.
        """
        settings = self._settings
        head = self._percentile_bin(settings.head_percent)
        tail = self._percentile_bin(settings.tail_percent)
        return head * settings.bin_s, min((tail + 1) * settings.bin_s, settings.range_s)

    @property
    def variation(self) -> float:
        """The coefficient of variation of the bins' counts: 0 where all are equal."""
        return self._variation.coefficient

    def to_state(self) -> dict[str, Any]:
        """What there is to keep over a restart, for JSON. It holds under other settings too."""
        return {"version": _STATE_VERSION, "idle_s": list(self._recent)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], settings: HistogramSettings | None = None) -> Self:
        """The policy as it was. Raises ValueError for what `to_state` did not write."""
        if not isinstance(state, Mapping) or state.keys() != {"version", "idle_s"}:
            raise ValueError("a keep-alive state holds version and idle_s, and nothing else")
        if state["version"] != _STATE_VERSION:
            raise ValueError("the keep-alive state was written by another version of Torpor")
        if not isinstance(state["idle_s"], list):
            raise ValueError("idle_s in a keep-alive state is a list")  # noqa: TRY004 - a bad state
        policy = cls(settings)
        for idle_s in state["idle_s"]:
            policy.observe_idle(idle_s)
        return policy

    def _count(self, idle_s: float, change: int) -> None:
        if idle_s >= self._settings.range_s:
            return
        index = min(int(idle_s / self._settings.bin_s), len(self._counts) - 1)
        before = self._counts[index]
        self._counts[index] = before + change
        self._variation.replace(before, before + change)
        self._in_range += change

    def _percentile_bin(self, percent: int) -> int:
        rank = -(-percent * self._in_range // 100)
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return index
        raise AssertionError("the counts do not add up")

    def _forecast(self) -> KeepAlive | None:
        settings = self._settings
        beyond = (idle_s for idle_s in reversed(self._recent) if idle_s >= settings.range_s)
        last = list(islice(beyond, _FORECAST_FROM))
        if len(last) < _FORECAST_AT_LEAST:
            return None
        mean, deviation = fmean(last), stdev(last)
        if deviation > _FORECAST_DEVIATION * mean:
            return None
        return _between(
            (mean - deviation) * (1 - settings.forecast_margin),
            (mean + deviation) * (1 + settings.forecast_margin),
            "forecast",
        )

    def _standard(self) -> KeepAlive:
        return KeepAlive(0.0, self._settings.standard_keep_alive_s, "fixed")


class _Variation:
    """Total and variance of a fixed number of counts, kept up to date while they change one by one.

    Welford, "Note on a method for calculating corrected sums of squares and products" (Technometrics, 1962),
    in the form that replaces one value by another. All counts begin at 0.
    """

    def __init__(self, counts: int) -> None:
        self._number = counts
        self._total = 0
        self._squares = 0.0

    def replace(self, old: int, new: int) -> None:
        """Replace one of the counts."""
        before = self._total / self._number
        self._total += new - old
        after = self._total / self._number
        self._squares += (new - old) * (new - after + old - before)

    @property
    def coefficient(self) -> float:
        """Deviation over mean; 0 where every count is 0."""
        if self._total == 0:
            return 0.0
        return math.sqrt(max(self._squares, 0.0) * self._number) / self._total


def _between(from_s: float, to_s: float, source: Literal["histogram", "forecast"]) -> KeepAlive:
    """Awake between these two times after the end of the last request."""
    return KeepAlive(from_s, to_s - from_s, source)


def _require_idle_time(idle_s: float) -> None:
    number = isinstance(idle_s, int | float) and not isinstance(idle_s, bool)
    _require(number and 0 <= idle_s <= _LONGEST_IDLE_S, "an idle time is a number of seconds from 0 to 1e9")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
