"""What inference requests took and made, by model and by the tier in which they found the engine."""

from collections import Counter
from collections.abc import Iterator
from operator import attrgetter

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from coldstart.tiers import SleepTier
from gateway.http.context import RequestRecord
from gateway.telemetry.histograms import GAPS_S, Histogram, histogram
from metering.types import Outcome

_LABELS = ("model", "tier")
_HISTOGRAMS = (
    (
        "first",
        "torpor_time_to_first_token_seconds",
        "TTFT of streams: from the headers of a request to its first event with text, a wake included.",
    ),
    ("gaps", "torpor_inter_token_latency_seconds", "ITL of streams: between two arrivals of text."),
    (
        "total",
        "torpor_inference_duration_seconds",
        "From the headers of a request to its end, of those that were completed.",
    ),
    ("queue", "torpor_queue_wait_seconds", "How long requests waited for their turn, and for an engine."),
    ("wake", "torpor_wake_wait_seconds", "How long requests that found no engine awake waited for it."),
)


class ModelTierStats:
    """The requests for one model that found their engine in one tier."""

    __slots__ = (
        "cached_tokens", "first", "gaps", "input_tokens", "output_tokens", "queue", "requests", "total",
        "wake",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = 0
        self.input_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.first = Histogram()
        self.gaps = Histogram(GAPS_S)
        self.total = Histogram()
        self.queue = Histogram()
        self.wake = Histogram()


class RequestMetrics:
    """All of them since the start. A stream adds its tokens' times as they come, the rest when it is over."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str], ModelTierStats] = {}

    def of(self, model: str, tier: str | None) -> ModelTierStats:
        """What is counted for the model and the tier."""
        key = model, tier or ""
        served = self._served.get(key)
        if served is None:
            served = self._served[key] = ModelTierStats()
        return served

    def observe(self, record: RequestRecord, elapsed_s: float) -> None:
        """A request is over that has reached an engine."""
        if record.model is None or record.tier is None:
            return
        served = self.of(record.model, record.tier)
        served.requests += 1
        if record.outcome == Outcome.COMPLETED:
            served.total.observe(elapsed_s)
        if record.queue_ms is not None:
            served.queue.observe(record.queue_ms / 1000)
        if record.wake_ms is not None and record.tier != SleepTier.HOT:
            served.wake.observe(record.wake_ms / 1000)
        usage = record.usage
        if usage is not None:
            served.input_tokens += usage.input_tokens
            served.cached_tokens += usage.cached_tokens
            served.output_tokens += usage.output_tokens

    def metrics(self) -> Iterator[Metric]:
        """As `MetricSource.metrics`."""
        requests = CounterMetricFamily(
            "torpor_requests_by_tier", "Requests by the tier in which they found the engine.", labels=_LABELS
        )
        tokens: Counter[tuple[str, str]] = Counter()
        for key, served in self._served.items():
            if served.requests:
                requests.add_metric(key, served.requests)
                tokens[key[0], "input"] += served.input_tokens
                tokens[key[0], "cached"] += served.cached_tokens
                tokens[key[0], "output"] += served.output_tokens
        yield requests
        family = CounterMetricFamily("torpor_tokens", "Tokens that were metered.", labels=("model", "kind"))
        for labels, count in tokens.items():
            family.add_metric(labels, count)
        yield family
        for attribute, name, help_text in _HISTOGRAMS:
            of = attrgetter(attribute)
            histograms = ((key, of(served)) for key, served in self._served.items())
            yield histogram(
                name,
                help_text,
                _LABELS,
                [(key, durations) for key, durations in histograms if not durations.empty],
            )
