"""Another server on the gateway's port: no command takes it for the gateway, and none sends it a key."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from gateway.config.sections import ServerConfig
from gateway.listening import CannotListen, LocalTransport, listen, listen_locally, origin_of
from gateway.storage.credentials import CredentialsFile
from gateway.storage.privacy import NotPrivate
from tests.gateway.alerts_fixture import certificate
from tests.gateway.stranger import stranger_at
from tests.process import REPOSITORY, Gateway, free_port
from tests.process_table import processes_with

PLAIN = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}


def _installed(folder: Path, url: str, port: int, server: str = "") -> Gateway:
    folder.mkdir(exist_ok=True)
    (folder / "torpor.toml").write_text(
        f"[server]\nport = {port}\n{server}[[models]]\nid = 'far'\nurl = '{url}'\n"
    )
    gateway = Gateway(folder, port, PLAIN)
    gateway.torpor("setup")
    return gateway


def _base_url(gateway: Gateway) -> str:
    return CredentialsFile(gateway.folder / ".torpor/credentials.env").read()["TORPOR_BASE_URL"]


@pytest.mark.parametrize(
    "command",
    [
        ("start", "--timeout", "20"),
        ("serve", "--hello"),
        ("wait", "--timeout", "2"),
        ("hello",),
        ("chat", "far", "hi"),
        ("engines", "--once"),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("silent", [False, True])
def test_no_command_takes_a_stranger_for_the_gateway(
    tmp_path: Path, standin: str, command: tuple[str, ...], silent: bool
) -> None:
    with stranger_at(silent=silent) as stranger:
        gateway = _installed(tmp_path, standin, stranger.port)
        done = gateway.torpor(*command, check=False)
        assert (stranger.connections, stranger.heard) == (0, b"")
    assert done.returncode == 1
    assert "answered" not in done.stdout
    if command[0] in ("start", "serve"):
        assert f"cannot listen on 127.0.0.1:{stranger.port}: Address already in use" in done.stderr
        assert "TORPOR_PORT" in done.stderr
    else:
        assert "no gateway" in done.stderr
    assert processes_with(f"gateway.cli\0serve\0--config\0{tmp_path}") == []


@pytest.mark.parametrize("command", [("usage",), ("project", "list")], ids=lambda each: each[0])
def test_administration_without_a_gateway_asks_no_stranger(
    tmp_path: Path, standin: str, command: tuple[str, ...]
) -> None:
    with stranger_at() as stranger:
        done = _installed(tmp_path, standin, stranger.port).torpor(*command)
        assert stranger.connections == 0
    assert done.returncode == 0


def test_make_up_in_the_background_fails_on_a_port_in_use(tmp_path: Path, standin: str) -> None:
    """The commands of the recipe, one after the other, as `make up DETACH=1` runs them."""
    torpor = f'"{sys.executable}" -m gateway.cli'
    with stranger_at() as stranger:
        _installed(tmp_path, standin, stranger.port)
        script = f"set -e; {torpor} setup; {torpor} snapshot create --missing; {torpor} start; {torpor} hello"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=PLAIN,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert stranger.connections == 0
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert "Torpor answers" not in done.stdout


def test_the_port_of_the_environment_is_the_one_that_is_looked_at(tmp_path: Path, standin: str) -> None:
    gateway = _installed(tmp_path, standin, free_port())
    with stranger_at() as stranger:
        gateway.environment = {**gateway.environment, "TORPOR_PORT": str(stranger.port)}
        done = gateway.torpor("start", check=False)
        assert stranger.connections == 0
    assert done.returncode == 1
    assert f"127.0.0.1:{stranger.port}: Address already in use" in done.stderr


@pytest.mark.parametrize(
    ("host", "holder"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1")]
)
def test_an_address_that_covers_the_gateways_is_in_use(host: str, holder: str) -> None:
    with stranger_at(holder) as stranger, pytest.raises(CannotListen, match="Address already in use"):
        listen(host, stranger.port)


def test_two_gateways_that_start_at_once_do_not_share_a_port() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(CannotListen, match="Address already in use"):
        listen("127.0.0.1", first.getsockname()[1])


def test_a_port_whose_last_connection_has_just_ended_is_free() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.accept()
            accepted.close()  # this side has TIME_WAIT
            client.recv(1)
    listen("127.0.0.1", port).close()


def test_a_gateway_of_another_directory_gets_no_key(tmp_path: Path, standin: str) -> None:
    first = _installed(tmp_path / "first", standin, free_port())
    second = _installed(tmp_path / "second", standin, first.port)
    try:
        first.torpor("start")
        done = second.torpor("start", check=False)
        assert (done.returncode, "Address already in use" in done.stderr) == (1, True)
        assert second.torpor("wait", "--timeout", "2", check=False).returncode == 1
        assert "status=401" not in (first.folder / ".torpor/gateway.log").read_text()
    finally:
        first.torpor("stop")


def _wait_for_end(pid: int) -> None:
    """A killed process keeps its sockets until its last thread ends; the first may be a zombie before."""
    tasks = Path(f"/proc/{pid}/task")
    while tasks.exists():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            threads = len(list(tasks.iterdir()))
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z" and threads == 1:
            return
        time.sleep(0.05)


def test_a_stranger_after_a_killed_gateway_gets_no_key(tmp_path: Path, standin: str) -> None:
    """The record and the socket of the dead gateway are still there."""
    gateway = _installed(tmp_path, standin, free_port())
    gateway.torpor("start")
    pid = int((tmp_path / ".torpor/gateway.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    _wait_for_end(pid)
    assert (tmp_path / ".torpor/gateway.sock").exists()
    with stranger_at(port=gateway.port) as stranger:
        for command in (("start",), ("wait", "--timeout", "2"), ("chat", "far", "hi"), ("hello",)):
            assert gateway.torpor(*command, check=False).returncode == 1
        assert gateway.torpor("usage").returncode == 0
        assert stranger.connections == 0
    try:
        gateway.torpor("start")
    finally:
        gateway.torpor("stop")


def test_the_address_in_the_credentials_follows_the_gateway(tmp_path: Path, standin: str) -> None:
    port, other = free_port(), free_port()
    gateway = _installed(tmp_path, standin, port)
    file = tmp_path / ".torpor/credentials.env"
    assert _base_url(gateway) == f"http://127.0.0.1:{port}/v1"
    file.write_text(file.read_text() + "# kept by hand\n")
    keys = CredentialsFile(file).read()["TORPOR_API_KEY"]
    for server, environment, expected in (
        ("", {"TORPOR_PORT": str(other)}, f"http://127.0.0.1:{other}/v1"),
        ("host = '0.0.0.0'\n", {}, f"http://127.0.0.1:{port}/v1"),
        ("host = '::1'\n", {}, f"http://[::1]:{port}/v1"),
    ):
        text = f"[server]\nport = {port}\n{server}[[models]]\nid = 'far'\nurl = '{standin}'\n"
        (tmp_path / "torpor.toml").write_text(text)
        gateway.environment = {**PLAIN, "TORPOR_METRICS__ENABLED": "false", **environment}
        try:
            assert f"listens at {expected.removesuffix('/v1')}" in gateway.torpor("start").stdout
            assert _base_url(gateway) == expected
            assert f"answers at {expected}" in gateway.torpor("hello").stdout
            # Without the environment that the gateway was started with, too.
            gateway.environment = {**PLAIN, "TORPOR_METRICS__ENABLED": "false"}
            gateway.torpor("setup")
            assert _base_url(gateway) == expected
            assert httpx.get(f"{expected}/models", trust_env=False).status_code == 401
        finally:
            gateway.torpor("stop")
    assert "# kept by hand\n" in file.read_text()
    assert CredentialsFile(file).read()["TORPOR_API_KEY"] == keys
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_commands_reach_a_gateway_with_tls_whatever_its_certificate(tmp_path: Path, standin: str) -> None:
    certificate(tmp_path)
    tls = "tls_certificate = 'mail.pem'\ntls_key = 'mail.key'\n"
    gateway = _installed(tmp_path, standin, free_port(), tls)
    try:
        assert f"listens at https://127.0.0.1:{gateway.port}" in gateway.torpor("start").stdout
        assert _base_url(gateway) == f"https://127.0.0.1:{gateway.port}/v1"
        assert gateway.torpor("chat", "far", "hello").stdout.strip()
        # The certificate is taken away from the configuration while the gateway runs.
        (tmp_path / "torpor.toml").write_text(
            f"[server]\nport = {gateway.port}\n[[models]]\nid = 'far'\nurl = '{standin}'\n"
        )
        assert gateway.torpor("wait", "--timeout", "20").returncode == 0
        assert _base_url(gateway).startswith("https://")
    finally:
        gateway.torpor("stop")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("0", "http://127.0.0.1:80"),
        ("", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("0:0:0:0:0:0:0:0", "http://[::1]:80"),
        ("2001:db8::1", "http://[2001:db8::1]:80"),
        ("gateway.example", "http://gateway.example:80"),
    ],
)
def test_the_origin_is_one_that_a_client_can_use(host: str, origin: str) -> None:
    assert origin_of(ServerConfig(host=host, port=80)) == origin
    secure = ServerConfig(host=host, tls_certificate=Path("a.pem"), tls_key=Path("a.key"))
    assert origin_of(secure, 80) == origin.replace("http:", "https:")


async def test_the_socket_works_below_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40) / ("path" * 40)
    folder.mkdir(parents=True, mode=0o700)
    with listen_locally(folder / "gateway.sock") as listener:
        assert stat.S_IMODE((folder / "gateway.sock").stat().st_mode) == 0o600
        listener.setblocking(True)
        transport = LocalTransport(folder / "gateway.sock")
        async with httpx.AsyncClient(transport=transport, timeout=0.2) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get("http://torpor/")
        listener.accept()[0].close()


def test_a_socket_where_others_may_write_gets_no_key(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(NotPrivate, match="others may write"):
        LocalTransport(tmp_path / "gateway.sock")
