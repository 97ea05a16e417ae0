"""What the endpoints work with, made once and owned by the app's lifespan."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from engines.client.engine_client import EngineClients
from engines.host import EngineHost
from gateway.adapters.service import Adapters
from gateway.alerts.service import Alerts
from gateway.config.sections import Config
from gateway.http.failure_limit import FailureLimit
from gateway.inference.admission import AdmissionControl
from gateway.inference.catalog import Catalog
from gateway.inference.exchange import Exchange, RelayContext
from gateway.inference.queues import ModelQueues
from gateway.telemetry.metrics import EngineMetrics, MetricSource, RequestCounts, gauge, gauge_by
from metering.ledger.service import Ledger
from metering.reports.costs import CostReports
from metering.reports.usage import UsageReports
from tenants.queueing.project_weights import ProjectWeights
from tenants.store import Tenants


@dataclass(slots=True, kw_only=True)
class Services:
    """The parts of a running gateway."""

    config: Config
    database: AsyncEngine
    tenants: Tenants
    ledger: Ledger
    reports: UsageReports
    costs: CostReports
    host: EngineHost
    clients: EngineClients
    catalog: Catalog
    control: AdmissionControl
    queues: ModelQueues
    weights: ProjectWeights
    adapters: Adapters
    alerts: Alerts
    failures: FailureLimit
    counts: RequestCounts
    running: set[Exchange] = field(default_factory=set)
    draining: bool = False
    relay: RelayContext = field(init=False)
    """What an exchange goes through."""

    def __post_init__(self) -> None:
        send_timeout_s = self.config.server.send_timeout_s
        self.relay = RelayContext(
            self.host,
            self.clients,
            self.ledger,
            self.queues,
            self.running,
            send_timeout_s,
            self.counts.served,
        )

    def metrics(self) -> Iterator[Metric]:
        """The gateway's own state, as `MetricSource` has it."""
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
            self.tenants.storage.silent_s(),
        )

        yield gauge("torpor_adapters", "Adapters that are registered.", len(self.adapters))
        yield gauge(
            "torpor_limits_in_memory",
            "Limits that have been charged, and counters of what runs.",
            len(self.control.admissions),
        )
        models = [model.id for model in self.config.models]
        for name, help_text, count in (
            ("torpor_queue_waiting", "Requests that wait for their turn.", self.queues.waiting),
            ("torpor_queue_running", "Requests that have their turn.", self.queues.running),
        ):
            yield gauge_by(name, help_text, "model", {model: count(model) for model in models})

    def metric_sources(self) -> list[MetricSource]:
        """Everything that tells Prometheus of itself."""
        return [self.counts, self, EngineMetrics(self.host), self.alerts.deliveries]

    def expire(self) -> None:
        """End what is still running: the time to drain is over."""
        for exchange in tuple(self.running):
            exchange.expire()


def services_of(request: Request) -> Services:
    """The services of the app that serves the request."""
    services: Services = request.app.state.services
    return services
