"""A real gateway in front of the stand-in engine: no model is loaded."""

import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

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
    """A gateway that routes ``far`` to the stand-in, and ``away`` to where nobody listens."""
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
