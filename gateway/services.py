"""What the endpoints work with, made once and owned by the app's lifespan."""

import asyncio
from dataclasses import dataclass, field

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
from gateway.telemetry.gateway_metrics import GatewayMetrics
from gateway.telemetry.metrics import EngineMetrics, MetricSource, RequestCounts
from metering.ledger.service import Ledger
from metering.reports.costs import CostReports
from metering.reports.usage import UsageReports
from tenants.queueing.project_weights import ProjectWeights
from tenants.store import Tenants


@dataclass(frozen=True, slots=True, kw_only=True)
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
    relay: RelayContext = field(init=False)
    """What an exchange goes through."""
    _drain: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        relay = RelayContext(
            self.host,
            self.clients,
            self.ledger,
            self.queues,
            self.running,
            self.config.server.send_timeout_s,
            self.counts.served,
        )
        object.__setattr__(self, "relay", relay)

    @property
    def draining(self) -> bool:
        """Whether the gateway is about to end, and refuses new requests."""
        return self._drain.is_set()

    def begin_drain(self) -> None:
        """Refuse new requests from now on."""
        self._drain.set()

    def metric_sources(self) -> list[MetricSource]:
        """Everything that tells Prometheus of itself."""
        state = GatewayMetrics(
            [model.id for model in self.config.models],
            self.running,
            self.ledger,
            self.tenants.storage,
            self.adapters,
            self.control.admissions,
            self.queues,
        )
        return [self.counts, state, EngineMetrics(self.host), self.alerts.deliveries]

    def expire(self) -> None:
        """End what is still running: the time to drain is over."""
        for exchange in tuple(self.running):
            exchange.expire()


def services_of(request: Request) -> Services:
    """The services of the app that serves the request."""
    services: Services = request.app.state.services
    return services
