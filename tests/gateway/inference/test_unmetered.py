"""Calls that no ledger counts are cared for like the others, with the stand-in of engines/ in its sandbox."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from engines.client.engine_client import EngineClients
from engines.host import EngineHost
from gateway.app import create_app
from gateway.config.sections import Config, ModelConfig, StorageConfig
from gateway.http.context import RequestContext, record_of
from gateway.http.errors import ApiError
from gateway.http.translation import answer_error
from gateway.inference.exchange import Plan, RelayContext, UnmeteredExchange
from gateway.inference.queues import ModelQueues
from gateway.services import Services
from gateway.storage.data_directory import DataDirectory
from gateway.storage.database import migrate, open_database
from metering.ledger.service import open_ledger
from tests.engines.support import QUICK, Starts, eventually, spec
from tests.gateway.serving import serving


@dataclass
class Stage:
    """A server whose every POST becomes an unmetered exchange with the same path of the stand-in."""

    relay: RelayContext
    starts: Starts
    http: httpx.AsyncClient

    def in_flight(self) -> int:
        return self.relay.host.status()[0].in_flight


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with _staged(tmp_path) as staged:
        yield staged


@asynccontextmanager
async def _staged(tmp_path: Path, unmetered_timeout_s: float = 30.0) -> AsyncIterator[Stage]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'torpor.db'}"
    await migrate(url)
    database, clients, starts = open_database(url), EngineClients(), Starts()
    with tempfile.TemporaryDirectory(prefix="torpor-") as run_dir:
        # The periodic check of an engine's health would find out too, but long after the test.
        policy = replace(QUICK, health_interval_s=60.0)
        async with (
            open_ledger(url, database, tmp_path / "ledger") as ledger,
            EngineHost([spec()], run_dir=Path(run_dir), policy=policy, make=starts) as host,
        ):
            context = RelayContext(
                host,
                clients,
                ledger,
                ModelQueues(host, {}),
                set(),
                10.0,
                unmetered_timeout_s=unmetered_timeout_s,
            )
            async with _served(context) as (relay, http):
                yield Stage(relay, starts, http)
    clients.close()
    await database.dispose()


@asynccontextmanager
async def _served(relay: RelayContext) -> AsyncIterator[tuple[RelayContext, httpx.AsyncClient]]:
    async def call(request: Request) -> UnmeteredExchange:
        plan = Plan(model_id="model", path=request.url.path, body=b"{}", wake_timeout_s=10.0)
        return UnmeteredExchange(relay, plan, record_of(request.scope))

    handlers = {ApiError: answer_error, Exception: answer_error}
    app = Starlette(routes=[Route("/{any}", call, methods=["POST"])], exception_handlers=handlers)
    async with (
        serving(RequestContext(app)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http,
    ):
        yield relay, http


def _code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def test_an_answer_comes_through(stage: Stage) -> None:
    response = await stage.http.post("/echo")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-torpor-engine"] == "cold"
    assert await eventually(lambda: not stage.relay.running)


async def test_a_client_that_leaves_gives_its_lease_back(stage: Stage) -> None:
    await stage.http.post("/echo")
    with pytest.raises(httpx.ReadTimeout):
        await stage.http.post("/hang", timeout=0.3)
    assert await eventually(lambda: stage.in_flight() == 0 and not stage.relay.running, 1.0)


async def test_a_client_that_leaves_does_not_wait_for_the_engine(stage: Stage) -> None:
    stage.starts.options = ("start_s=5",)
    with pytest.raises(httpx.ReadTimeout):
        await stage.http.post("/echo", timeout=0.3)
    assert await eventually(lambda: not stage.relay.running, 1.0)


async def test_a_drain_knows_it_and_ends_it(stage: Stage) -> None:
    asking = asyncio.create_task(stage.http.post("/hang"))
    assert await eventually(lambda: stage.in_flight() == 1)
    (running,) = stage.relay.running
    running.expire()
    assert _code(await asking) == (503, "shutting_down")
    assert stage.in_flight() == 0


async def test_an_engine_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    async with _staged(tmp_path, unmetered_timeout_s=0.3) as stage:
        await stage.http.post("/deafen")
        assert _code(await stage.http.post("/hang")) == (502, "engine_failed")
        assert (await stage.http.post("/echo")).status_code == 200
        assert len(stage.starts.created) == 2, "the deaf engine was noticed, and started again"


async def test_an_engine_that_dies_is_a_502(stage: Stage) -> None:
    assert _code(await stage.http.post("/die")) == (502, "engine_failed")
    assert (await stage.http.post("/echo")).status_code == 200


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/chat/completions"])
async def test_nothing_is_begun_while_the_gateway_drains(tmp_path: Path, path: str) -> None:
    storage = StorageConfig(data_dir=tmp_path)
    await migrate(storage.database_url())
    app = create_app(
        Config(storage=storage, models=(ModelConfig(id="far", url="http://127.0.0.1:9"),)),
        DataDirectory(tmp_path, {}),
    )
    async with app.router.lifespan_context(app):
        services: Services = app.state.services
        organization = await services.tenants.organizations.create("acme")
        project = await services.tenants.projects.create(organization.id, "web")
        _, secret = await services.tenants.keys.create_for_project(organization.id, project.id, "key")
        transport = httpx.ASGITransport(RequestContext(app))
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://torpor", headers=headers) as http:
            services.begin_drain()
            response = await http.post(path, json={"model": "far"})
    assert _code(response) == (503, "shutting_down")
    assert response.headers["retry-after"] == "5"
