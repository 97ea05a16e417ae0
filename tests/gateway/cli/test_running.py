"""``torpor start`` and ``stop``: what is left behind, and what is told, when something goes wrong."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli.common import Installation
from tests.engines.model_folders import llama_folder
from tests.process import REPOSITORY, Gateway, free_port, running_gateway
from tests.process_table import processes_with

SERVE = "gateway.cli\0serve\0--config\0"


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _installed(folder: Path, url: str, port: int | None = None) -> Gateway:
    """An installation whose default model is a `url` model."""
    port = port or free_port()
    config = folder / "torpor.toml"
    config.write_text(f"[server]\nport = {port}\n[[models]]\nid = 'far'\nurl = '{url}'\n")
    gateway = Gateway(folder, port, {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)})
    gateway.torpor("setup")
    return gateway


def _mark(gateway: Gateway) -> str:
    """What the command line of the gateway that is started holds."""
    return f"{SERVE}{gateway.folder / 'torpor.toml'}"


def _start(gateway: Gateway, *options: str) -> "subprocess.CompletedProcess[str]":
    return gateway.torpor("start", "--config", str(gateway.folder / "torpor.toml"), *options, check=False)


def test_a_gateway_is_started_and_stopped(tmp_path: Path, standin: str) -> None:
    gateway = _installed(tmp_path, standin)
    try:
        assert _start(gateway).returncode == 0
        assert len(processes_with(_mark(gateway))) == 1
        again = _start(gateway)
        assert again.returncode == 0
        assert "runs already" in again.stdout
        assert "changed" not in again.stdout
    finally:
        gateway.torpor("stop")
    assert processes_with(_mark(gateway)) == []


def test_a_model_that_was_added_after_the_start_needs_another_start(tmp_path: Path, standin: str) -> None:
    gateway = _installed(tmp_path, standin)
    config = tmp_path / "torpor.toml"
    llama_folder(tmp_path / "model")
    try:
        assert _start(gateway).returncode == 0
        with config.open("a") as file:
            file.write("[[models]]\nid = 'mine'\nsource = 'model'\n")
        again = _start(gateway)
        assert again.returncode == 0
        assert f"{config} has changed since the gateway started" in again.stdout
        assert "`torpor stop` and `torpor start`" in again.stdout
        created = gateway.torpor("snapshot", "create", "mine", check=False)
        assert created.returncode == 1
        assert "the running gateway was started without model mine" in created.stderr
        assert "`torpor stop` and `torpor start`" in created.stderr
        installation = Installation.load(config)
        assert installation.data.changed_since_start(config)
    finally:
        gateway.torpor("stop")
    assert not installation.data.changed_since_start(config)


def test_the_log_is_bounded_and_begun_anew_at_each_start(tmp_path: Path, standin: str) -> None:
    gateway = _installed(tmp_path, standin)
    gateway.environment = {
        **gateway.environment,
        "TORPOR_SERVER__LOG_FILE_BYTES": "4000",
        "TORPOR_SERVER__LOG_FILES_KEPT": "2",
    }
    log = tmp_path / ".torpor/gateway.log"
    log.write_text("of the run before\n")
    log.chmod(0o600)
    try:
        assert _start(gateway).returncode == 0
        assert "listening on" in log.read_text()
        assert log.with_name("gateway.log.1").read_text() == "of the run before\n"
        with gateway.http("none") as http:
            for _ in range(200):
                http.get("/health/live")
    finally:
        gateway.torpor("stop")
    files = sorted(file.name for file in log.parent.glob("gateway.log*"))
    assert files == ["gateway.log", "gateway.log.1", "gateway.log.2"]
    assert all(log.with_name(name).stat().st_size <= 4000 for name in files)
    assert "path=/health/live" in log.with_name("gateway.log.1").read_text()


def test_a_start_that_takes_too_long_leaves_nothing(tmp_path: Path, silent: str) -> None:
    gateway = _installed(tmp_path, silent)
    failed = _start(gateway, "--timeout", "3")
    assert failed.returncode == 1
    assert "far did not answer within 3 s; the gateway that was started has ended" in failed.stderr
    assert "listening on" in failed.stderr, "the log's last lines"
    assert processes_with(_mark(gateway)) == []
    assert gateway.torpor("stop").stdout == "no gateway is running\n"


def test_a_start_whose_model_fails_leaves_nothing(tmp_path: Path) -> None:
    gateway = _installed(tmp_path, f"http://127.0.0.1:{free_port()}")
    failed = _start(gateway)
    assert failed.returncode == 1
    assert "engine_failed" in failed.stderr
    assert processes_with(_mark(gateway)) == []


def test_a_gateway_that_cannot_start_says_why(tmp_path: Path, standin: str) -> None:
    gateway = _installed(tmp_path, standin)
    (tmp_path / ".torpor/torpor.db").write_text("not a database")
    failed = _start(gateway)
    assert failed.returncode == 1
    assert "the gateway ended by itself, with exit code 1" in failed.stderr
    assert "check [storage] database" in failed.stderr


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_is_ended_leaves_nothing(tmp_path: Path, silent: str, ending: signal.Signals) -> None:
    gateway = _installed(tmp_path, silent)
    command = [sys.executable, "-m", "gateway.cli", "start", "--config", str(tmp_path / "torpor.toml")]
    starting = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=gateway.environment,
        # A shell's job in the background has SIGINT ignored, and hands that on to what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / ".torpor/gateway.pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        starting.send_signal(ending)
        assert starting.wait(60) == 1
    finally:
        starting.kill()
        starting.wait()
    assert processes_with(_mark(gateway)) == []


def test_nothing_is_started_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "torpor.toml").write_text("")
    gateway = Gateway(tmp_path, 0, {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)})
    gateway.torpor("setup")
    assert "names no model" in _start(gateway).stderr
    assert not (tmp_path / ".torpor/gateway.log").exists()


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
from gateway.config.sections import Config, ServerConfig, StorageConfig
from gateway.storage.data_directory import DataDirectory
from gateway.telemetry.metrics import RequestCounts
from gateway.config.sections import MetricsConfig

data = DataDirectory(Path("data").absolute())

@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.services = SimpleNamespace(
        running=set(), begin_drain=lambda: None, expire=lambda: None
    )
    try:
        yield
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.5)
        await asyncio.sleep(0.5)
        print("pid file" if data.pid_file.exists() else "withdrawn")

async def hang(request):
    await asyncio.sleep(60)

app = Starlette(routes=[Route("/", hang)], lifespan=lifespan)
app.state.counts = RequestCounts()
server.create_app = lambda config, data: app
config = Config(
    server=ServerConfig(port=int(sys.argv[1])),
    storage=StorageConfig(data_dir=data.path),
    metrics=MetricsConfig(enabled=False),
)
with data.held():
    server.serve(config, data)
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
            answer, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert answer.split("\n") == ["pid file", "withdrawn", ""]
