"""The gateway's own state as gauges: requests at work, the ledger, the database, limits and queues."""

import asyncio
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.metrics_core import Metric

from gateway.telemetry.metrics import gauge, gauge_by
from metering.ledger.service import Ledger
from tenants.storage import Storage


class QueueCounts(Protocol):
    """How many requests wait and run, by model."""

    def waiting(self, model_id: str) -> int:
        """Requests of the model that wait for their turn."""

    def running(self, model_id: str) -> int:
        """Requests of the model that have their turn."""


@dataclass(frozen=True, slots=True)
class GatewayMetrics:
    """A `MetricSource` of the parts of one gateway. ``models``: the names of the configured models."""

    models: Sequence[str]
    running: Sized
    ledger: Ledger
    storage: Storage
    adapters: Sized
    admissions: Sized
    queues: QueueCounts

    def metrics(self) -> Iterator[Metric]:
        """The gauges, as `MetricSource` has them."""
        yield gauge("torpor_exchanges", "Inference requests that are being worked on.", len(self.running))
        yield gauge("torpor_tasks", "Tasks of the event loop.", len(asyncio.all_tasks()))
        yield gauge("torpor_ledger_open_entries", "Attempts that are not settled.", self.ledger.open_entries)
        yield gauge("torpor_ledger_backlog", "Writes that wait to be durable.", self.ledger.backlog)
        yield gauge(
            "torpor_ledger_journal_bytes", "Bytes of the local journal in use.", self.ledger.journal_bytes
        )
        yield gauge_by(
            "torpor_ledger_lag_seconds",
            "How long the oldest write has waited that is not there yet, or a little more.",
            "stage",
            self.ledger.lags_s,
        )
        yield gauge("torpor_ledger_writable", "1 while the ledger takes entries.", self.ledger.accepts)
        yield gauge(
            "torpor_database_silent_seconds",
            "Seconds since the database last responded.",
            self.storage.silent_s(),
        )
        yield gauge("torpor_adapters", "Adapters that are registered.", len(self.adapters))
        yield gauge(
            "torpor_limits_in_memory",
            "Limits that have been charged, and counters of what runs.",
            len(self.admissions),
        )
        for name, help_text, count in (
            ("torpor_queue_waiting", "Requests that wait for their turn.", self.queues.waiting),
            ("torpor_queue_running", "Requests that have their turn.", self.queues.running),
        ):
            yield gauge_by(name, help_text, "model", {model: count(model) for model in self.models})
