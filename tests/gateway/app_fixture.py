"""A gateway in the test's own process, with clocks that the test moves, in front of the stand-in engine."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from sqlalchemy import update
from starlette.applications import Starlette

from engines.spec import ModelSpec
from gateway.app import create_app
from gateway.config.alerts import AlertsConfig
from gateway.config.prices import PriceConfig
from gateway.config.sections import Config, LimitsConfig, ModelConfig, StorageConfig
from gateway.http.context import RequestContext
from gateway.inference.admission import AdmissionControl, open_admission
from gateway.inference.catalog import Catalog, Model
from gateway.services import Services
from gateway.storage.data_directory import DataDirectory
from gateway.storage.database import migrate
from metering.reports.spending import spent_since
from metering.tokenizers.chat_template import ChatTemplate
from metering.tokenizers.counter import TokenCounter
from tenants.tables import api_keys
from tests.gateway.serving import serving
from tests.process import MODELS

SECOND = 10**9
QUESTION = "What is the capital of France?"
CONTEXT = 1000


@dataclass
class Clock:
    """Nanoseconds for the limits, which stand still until a test moves them."""

    ns: int = 10**15

    def __call__(self) -> int:
        return self.ns


@dataclass
class Tenant:
    """A project with a key, and the admin key of its organization."""

    organization_id: str
    project_id: str
    key_id: str
    key: str
    admin_key: str


@dataclass
class Stage:
    """The gateway, its two tenants, and clients of the first."""

    services: Services
    config: Config
    port: int
    tenant: Tenant
    other: Tenant
    clock: Clock
    stack: AsyncExitStack
    app: Starlette
    http: httpx.AsyncClient = field(init=False)
    admin: httpx.AsyncClient = field(init=False)

    def replace(self, **parts: Any) -> None:
        """Give the application services with other parts, as after a restart."""
        self.services = self.app.state.services = replace(self.services, **parts)

    @property
    def control(self) -> AdmissionControl:
        return self.services.control

    async def open(self) -> None:
        self.http = await self.stack.enter_async_context(self.client(self.tenant.key))
        self.admin = await self.stack.enter_async_context(self.client(self.tenant.admin_key))

    def client(self, key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=30,
            limits=httpx.Limits(max_connections=128),
        )

    def openai(self, **options: Any) -> AsyncOpenAI:
        """The official client, with the keys of the first tenant."""
        return AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1",
            api_key=self.tenant.key,
            **{"admin_api_key": self.tenant.admin_key, "max_retries": 0, **options},
        )

    async def status(self, key: str, path: str = "/v1/models") -> int:
        """The answer of the gateway to a request with this key."""
        async with self.client(key) as http:
            return (await http.get(path)).status_code

    async def expire(self, key_id: str) -> None:
        """As if the key had expired long ago."""
        async with self.services.database.begin() as connection:
            await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(expires_ms=1))

    async def ask(self, text: str = QUESTION, **fields: Any) -> httpx.Response:
        body = {"model": "near", "messages": [{"role": "user", "content": text}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def limit(self, **sizes: int | None) -> None:
        """Limits of the project for the model, set as an administrator sets them."""
        path = f"/v1/organization/projects/{self.tenant.project_id}/rate_limits/rl-near"
        assert (await self.admin.post(path, json=sizes)).is_success

    async def limit_key(self, **sizes: int | None) -> str:
        body = {"subject_type": "key", "subject_id": self.tenant.key_id, **sizes}
        response = await self.admin.post("/v1/torpor/limits", json=body)
        limit_id: str = response.json()["id"]
        return limit_id

    async def spend_limit(self, cents: int) -> None:
        path = f"/v1/organization/projects/{self.tenant.project_id}/spend_limit"
        body = {"threshold_amount": cents, "currency": "USD", "interval": "month"}
        assert (await self.admin.post(path, json=body)).is_success


@asynccontextmanager
async def stage_at(
    folder: Path,
    engine: str,
    *,
    limits: LimitsConfig | None = None,
    prices: Sequence[PriceConfig] = (),
    near: Mapping[str, Any] | None = None,
    alerts: AlertsConfig | None = None,
    environment: Mapping[str, str] | None = None,
    database: str | None = None,
) -> AsyncIterator[Stage]:
    """``near`` and ``away`` count as smollm2-135m does; ``near`` is the stand-in, ``away`` has no server."""
    storage = StorageConfig(data_dir=folder, database=database)
    await migrate(storage.database_url())
    models = (
        ModelConfig(id="near", url=engine, max_model_len=CONTEXT, **(near or {})),
        ModelConfig(id="away", url="http://127.0.0.1:9", max_model_len=CONTEXT),
        ModelConfig(id="far", url=engine),
    )
    config = Config(
        storage=storage,
        models=models,
        limits=limits or LimitsConfig(),
        prices=tuple(prices),
        alerts=alerts or AlertsConfig(),
    )
    app = create_app(config, DataDirectory(folder, environment or {}))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        services, clock = _services(app), Clock()
        control = await open_admission(config, services.database, clock_ns=clock)
        services.alerts.watch(control.budgets, partial(spent_since, services.database))
        catalog = Catalog(_model(model.spec({})) for model in models)
        services = app.state.services = replace(services, control=control, catalog=catalog)
        port = await stack.enter_async_context(serving(RequestContext(app, app.state.counts.observe)))
        tenant, other = await _tenant(services, "acme"), await _tenant(services, "other")
        stage = Stage(services, config, port, tenant, other, clock, stack, app)
        await stage.open()
        yield stage


def _services(app: Starlette) -> Services:
    services: Services = app.state.services
    return services


def _model(spec: ModelSpec) -> Model:
    """The engine is a `url` model; the gateway has tokenizer and template of all models but ``far``."""
    counter, template = (None, None) if spec.id == "far" else _tokenizer()
    return Model(spec, 1, spec.max_model_len, counter, template)


@cache
def _tokenizer() -> tuple[TokenCounter, ChatTemplate]:
    folder = MODELS / "smollm2-135m"
    return TokenCounter.load(folder), ChatTemplate.load(folder)


async def _tenant(services: Services, slug: str) -> Tenant:
    tenants = services.tenants
    organization, _, admin_key = await tenants.keys.create_with_organization(slug, key_name="admin")
    project = await tenants.projects.create(organization.id, "web")
    key, secret = await tenants.keys.create_for_project(organization.id, project.id, "key")
    return Tenant(organization.id, project.id, key.id, secret, admin_key)
