"""A real gateway in front of the stand-in engine: no model is loaded."""

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI

from tests.gateway.app_fixture import Stage, stage_at
from tests.gateway.dialect_site import Site, dialect_site
from tests.gateway.raw_http import Call, Connection, call_of, connected
from tests.process import REPOSITORY, Gateway, free_port, running_gateway


@pytest.fixture(scope="session")
def standin() -> Iterator[str]:
    """The stand-in's base URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "tests.standin", str(port)], cwd=REPOSITORY)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{url}/v1/models", trust_env=False)
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def routed(standin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that routes ``far`` to the stand-in, and ``away`` to a port without a server."""
    models = f"""
[[models]]
id = "far"
url = "{standin}/v1"

[[models]]
id = "away"
url = "http://127.0.0.1:{free_port()}"
"""
    with running_gateway(tmp_path_factory.mktemp("routed"), models) as started:
        yield started


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A gateway in front of a server that answers as a test says."""
    with dialect_site(tmp_path_factory.mktemp("dialects")) as started:
        yield started


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A gateway with two tenants, whose engines are nowhere."""
    async with stage_at(tmp_path, "http://127.0.0.1:9") as opened:
        yield opened


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[AsyncOpenAI]:
    """The official client, with the keys of the stage's first tenant."""
    async with stage.openai() as opened:
        yield opened


@pytest.fixture
async def root(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the root key."""
    _, secret = await stage.services.tenants.keys.create_root()
    async with stage.client(secret) as opened:
        yield opened


@pytest.fixture(params=["fast", "starlette"])
def call(request: pytest.FixtureRequest, routed: Gateway) -> Call:
    """A good request on either way to an endpoint: past Starlette, or through it."""
    return call_of(routed, request.param)


@pytest.fixture
def connection(routed: Gateway) -> Iterator[Connection]:
    """A raw connection to the routed gateway."""
    with connected(routed) as opened:
        yield opened
