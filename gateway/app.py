"""The ASGI application: routes, the handlers of errors, and the lifespan that owns every resource."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from engines.client.engine_client import EngineClients
from engines.errors import EngineError
from engines.spec import ModelSpec
from gateway.adapters.service import open_adapters
from gateway.alerts.service import open_alerts
from gateway.api import (
    adapters,
    admin_keys,
    audit_logs,
    checkpoint_permissions,
    engines,
    health,
    inference,
    models,
    organizations,
    project_keys,
    project_weights,
    projects,
    rate_limits,
    snapshots,
    spend_alerts,
    spend_limits,
    tokens,
    unsupported,
    usage,
    users,
)
from gateway.api.openapi import document
from gateway.config.identity import make_issuers
from gateway.config.prices import price_list
from gateway.config.sections import Config
from gateway.engine_host import engine_host, fitted_specs
from gateway.http.context import RequestContext, record_of
from gateway.http.cors import cors
from gateway.http.errors import ApiError
from gateway.http.failure_limit import FailureLimit
from gateway.http.fast_path import FastPath
from gateway.http.translation import answer_error
from gateway.http.unknown_endpoint import UnknownEndpoints
from gateway.inference.admission import open_admission
from gateway.inference.catalog import Catalog, load_model
from gateway.inference.queues import ModelQueues, queue_of
from gateway.services import Services
from gateway.storage.data_directory import DataDirectory
from gateway.storage.database import open_database
from gateway.telemetry.engine_time_sampler import watched
from gateway.telemetry.metrics import RequestCounts
from metering.errors import MeteringError
from metering.ledger.service import open_ledger
from metering.reports.costs import CostReports
from metering.reports.spending import spent_since
from metering.reports.usage import UsageReports
from tenants.errors import TenantError
from tenants.queueing.project_weights import open_weights
from tenants.store import open_tenants
from tenants.tokens.sources import key_client

ROUTES: list[Route] = [
    route
    for module in (
        health,
        models,
        inference,
        organizations,
        projects,
        project_keys,
        admin_keys,
        users,
        audit_logs,
        usage,
        engines,
        snapshots,
        project_weights,
        tokens,
        rate_limits,
        spend_limits,
        spend_alerts,
        adapters,
        checkpoint_permissions,
        document,
        unsupported,
    )
    for route in module.ROUTES
]
"""Every route; the first that matches is taken."""


def create_app(config: Config, data: DataDirectory) -> Starlette:
    """The gateway for this configuration, to be served inside a `RequestContext`.

    ``data`` is held by the caller, and the database's schema is up to date. Raises `InvalidModel` and
    `InvalidTokenizer` for a model whose files cannot be used.
    """
    specs = fitted_specs(config, data)
    started = int(time.time())
    catalog = Catalog(load_model(spec, started) for spec in specs)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_services(config, data, specs, catalog, counts) as services:
            app.state.services = services
            yield

    handled = (ApiError, TenantError, MeteringError, EngineError)
    handlers = dict.fromkeys(handled, answer_error)
    counts = RequestCounts(config.metrics.by_project)
    app = Starlette(
        routes=ROUTES,
        middleware=cors(config.server.cors_origins),
        exception_handlers={
            **handlers,
            HTTPException: UnknownEndpoints(ROUTES).answer,
            ClientDisconnect: _client_gone,
            Exception: answer_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.counts = counts
    return app


@asynccontextmanager
async def open_services(
    config: Config,
    data: DataDirectory,
    specs: list[ModelSpec],
    catalog: Catalog,
    counts: RequestCounts,
) -> AsyncIterator[Services]:
    """Open what the gateway works with, in order, and close it in the other."""
    url = config.storage.database_url()
    async with AsyncExitStack() as stack:
        database = open_database(url)
        stack.push_async_callback(database.dispose)
        issuers = []
        if config.issuers:
            keys = await stack.enter_async_context(key_client())
            issuers = make_issuers(config.issuers, data.environment, keys)
        tenants = await stack.enter_async_context(
            open_tenants(
                database,
                data.pepper(),
                changes=data.changes_file,
                memory_s=config.authentication.memory_s,
                issuers=issuers,
            )
        )
        ledger = await stack.enter_async_context(
            open_ledger(url, database, data.ledger_folder, price_list(config.prices))
        )
        control = await open_admission(config, database, applied=ledger.applied)
        alerts = await stack.enter_async_context(
            open_alerts(
                database,
                config.alerts,
                data.pepper(),
                data.environment,
                control.budgets,
                partial(spent_since, database) if config.prices else None,
            )
        )
        clients = EngineClients()
        stack.callback(clients.close)
        host = await stack.enter_async_context(engine_host(config, data, specs))
        await stack.enter_async_context(watched(host, database, ledger.owner))
        yield Services(
            config=config,
            database=database,
            tenants=tenants,
            ledger=ledger,
            reports=UsageReports(database, fresh=ledger.applied),
            costs=CostReports(database, fresh=ledger.applied),
            host=host,
            clients=clients,
            catalog=catalog,
            control=control,
            queues=ModelQueues(host, {model.id: queue_of(model, config.limits) for model in config.models}),
            weights=await open_weights(database),
            adapters=await open_adapters(database, data.adapter_folder, host, config.adapters),
            alerts=alerts,
            failures=FailureLimit(config.authentication.failures_per_minute),
            counts=counts,
        )


async def _client_gone(request: Request, _error: Exception) -> Response:
    record_of(request.scope).client_gone = True
    return Response(status_code=400)


def served(app: Starlette) -> ASGIApp:
    """The application as it is served: requests have their record and their line in the log.

    Where browsers of other origins are answered, every route goes through the middleware that does it.
    """
    inner: ASGIApp = app
    if not app.user_middleware:
        inner = FastPath(app, inference.METERED)
    return RequestContext(inner, app.state.counts.observe)
