"""A request for an adapter that an engine has spoiled: asked again once, and then refused."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from engines.adapter import Adapter
from engines.client.engine_client import EngineClients
from engines.host import EngineHost
from gateway.http.context import RequestContext, record_of
from gateway.http.errors import ApiError
from gateway.http.translation import answer_error
from gateway.inference.exchange import Plan, RelayContext, UnmeteredExchange
from gateway.inference.queues import ModelQueues
from gateway.storage.database import migrate, open_database
from metering.ledger.service import open_ledger
from tests.engines.uploads import PATIENT, base, engine, spoil, uploaded
from tests.gateway.serving import serving


@dataclass
class Stage:
    """A server whose every POST is a request for the adapter."""

    host: EngineHost
    http: httpx.AsyncClient
    adapter: Adapter


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'torpor.db'}"
    await migrate(url)
    database, clients = open_database(url), EngineClients()
    adapter = uploaded(tmp_path, "mine")
    with tempfile.TemporaryDirectory(prefix="torpor-") as run_dir:
        async with (
            open_ledger(url, database, tmp_path / "ledger") as ledger,
            EngineHost([base()], run_dir=Path(run_dir), policy=PATIENT, make=engine) as host,
            _served(RelayContext(host, clients, ledger, ModelQueues(host, {}), set(), 10.0), adapter) as http,
        ):
            yield Stage(host, http, adapter)
    clients.close()
    await database.dispose()


@asynccontextmanager
async def _served(relay: RelayContext, adapter: Adapter) -> AsyncIterator[httpx.AsyncClient]:
    async def call(request: Request) -> UnmeteredExchange:
        path, body = request.url.path, b'{"prompt":"Who are you?"}'
        plan = Plan(model_id="model", path=path, body=body, wake_timeout_s=10.0, adapter=adapter)
        return UnmeteredExchange(relay, plan, record_of(request.scope))

    handlers = {ApiError: answer_error, Exception: answer_error}
    app = Starlette(routes=[Route("/v1/completions", call, methods=["POST"])], exception_handlers=handlers)
    async with (
        serving(RequestContext(app)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http,
    ):
        yield http


async def _ask(stage: Stage) -> httpx.Response:
    return await stage.http.post("/v1/completions")


async def test_the_answer_says_the_public_name(stage: Stage) -> None:
    assert (await _ask(stage)).json() == {"model": stage.adapter.name, "text": "mine"}


async def test_one_spoiled_load_is_not_noticed(stage: Stage) -> None:
    await spoil(stage.host, "another's")
    assert (await _ask(stage)).json() == {"model": stage.adapter.name, "text": "mine"}
    (status,) = stage.host.status()
    assert (status.adapters.loads, status.adapters.misfits) == (2, 1)


async def test_two_fail_the_request_and_the_next_one_meets_another_engine(stage: Stage) -> None:
    await spoil(stage.host, "another's", "another's")
    refused = await _ask(stage)
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "engine_failed")
    assert (await _ask(stage)).json()["text"] == "mine"
    (status,) = stage.host.status()
    assert (status.adapters.misfits, status.adapters.engines_given_up) == (2, 1)
    assert status.replicas[-1].number == 2
