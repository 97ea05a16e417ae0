"""``torpor start`` and ``stop``: what is left behind, and what is told, when something goes wrong."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.process import REPOSITORY, free_port, running_gateway


def test_a_gateway_is_stopped_whatever_its_configuration_has_become(tmp_path: Path) -> None:
    with running_gateway(tmp_path, models="") as gateway:
        assert gateway.process is not None
        (tmp_path / "torpor.toml").write_text(
            "nonsense = 1\n[server]\nprot = 1\ntls_key = 'gone.pem'\n[[models]]\nid = 'a'\nsource = 'gone'\n"
        )
        environment = {**gateway.environment, "TORPOR_NOWHERE__KEY": "x", "TORPOR_PORT": "many"}
        gateway.environment = environment
        assert gateway.torpor("serve", check=False).returncode == 1
        stopped = gateway.torpor("stop").stdout
        assert stopped == f"the gateway (process {gateway.process.pid}) has ended\n"
        assert gateway.process.poll() == 0, "it has ended when the command returns"
        assert gateway.torpor("stop").stdout == "no gateway is running\n"


def test_what_stopping_needs_is_checked(tmp_path: Path) -> None:
    (tmp_path / "torpor.toml").write_text("[server]\ndrain_timeout_s = 'long'\n")
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "stop"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "torpor.toml:2: [server] drain_timeout_s: must be a number" in done.stderr


_SLOW_END = """
import asyncio, contextlib, sys
from pathlib import Path
from types import SimpleNamespace
from starlette.applications import Starlette
from starlette.routing import Route
from gateway import server
from gateway.config import Config, ServerConfig, StorageConfig
from gateway.datadir import DataDirectory

data = DataDirectory(Path("data").absolute())

@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.services = SimpleNamespace(running=set(), draining=False, expire=lambda: None)
    try:
        yield
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5)
        await asyncio.sleep(0.5)
        print("pid file" if data.pid_file.exists() else "withdrawn")

async def hang(request):
    await asyncio.sleep(60)

server.create_app = lambda config, data: Starlette(routes=[Route("/", hang)], lifespan=lifespan)
storage = StorageConfig(data_dir=data.path)
with data.held():
    server.serve(Config(server=ServerConfig(port=int(sys.argv[1])), storage=storage), data)
print("pid file" if data.pid_file.exists() else "withdrawn")
"""


def test_the_pid_file_is_withdrawn_when_everything_has_ended(tmp_path: Path) -> None:
    """Also where the end is forced by a second Ctrl-C, behind which the engines are still ended."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_END, str(port)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "data/gateway.pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with socket.create_connection(("127.0.0.1", port)) as hanging:
            hanging.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            told, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert told.split("\n") == ["pid file", "withdrawn", ""]
