"""The server as a whole: TLS, proxies, its log, and starts that must fail with one line."""

import datetime
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.process import CHAT_MODEL, MODELS, REPOSITORY, Gateway, free_port, running_gateway


def _certificate(folder: Path) -> None:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def test_tls(tmp_path: Path) -> None:
    _certificate(tmp_path)
    port = free_port()
    (tmp_path / "torpor.toml").write_text(
        f'[server]\nport = {port}\ntls_certificate = "certificate.pem"\ntls_key = "key.pem"\n'
    )
    gateway = Gateway(tmp_path, port, {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)})
    gateway.torpor("setup")
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "serve"], cwd=tmp_path, env=gateway.environment
    )
    context = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    context.check_hostname = False
    try:
        with httpx.Client(
            transport=httpx.HTTPTransport(verify=context, retries=8), trust_env=False
        ) as client:
            assert client.get(f"https://127.0.0.1:{port}/health/ready").json() == {"status": "ready"}
        assert "demo" in gateway.torpor("project", "list").stdout, "the command trusts the certificate"
    finally:
        process.terminate()
        assert process.wait(30) == 0


def _logged(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """The line of a request: it is written after the answer."""
    for _ in range(100):
        lines: list[dict[str, Any]] = [json.loads(line) for line in gateway.log.splitlines()]
        for line in lines:
            if line.get("request_id") == request_id:
                return line
        time.sleep(0.05)
    raise AssertionError(f"no line for {request_id}")


@pytest.mark.parametrize(("trusted", "address"), [("127.0.0.1", "203.0.113.9"), ("10.0.0.0/8", "127.0.0.1")])
def test_only_trusted_proxies_tell_the_clients_address(tmp_path: Path, trusted: str, address: str) -> None:
    sections = f'trusted_proxies = ["{trusted}"]\nlog_format = "json"\n'
    with running_gateway(tmp_path, models="", sections=sections) as gateway, gateway.http() as http:
        http.get("/v1/models", headers={"x-forwarded-for": "203.0.113.9", "x-request-id": "traced"})
        line = _logged(gateway, "traced")
    assert line["client"] == address
    assert line["status"] == 200
    assert line["key"].startswith("key_")
    assert line["project"].startswith("proj_")
    assert line["organization"].startswith("org-")
    assert line["total_ms"] > 0


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_well_when_it_is_asked_to(tmp_path: Path, ending: signal.Signals) -> None:
    with running_gateway(tmp_path, models="") as gateway:
        assert gateway.end(ending) == 0
        assert "Traceback" not in gateway.log
        assert not (tmp_path / ".torpor/gateway.pid").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[server]\nprot = 1\n", "torpor.toml:2: [server] prot: unknown key"),
        ('[storage]\ndatabase = "nonsense"\n', "torpor:"),
        (
            '[storage]\ndatabase = "sqlite+aiosqlite:////nowhere/at/all.db"\n',
            "torpor: the database cannot be opened: unable to open database file",
        ),
        ('[[models]]\nid = "a"\nsource = "nowhere"\n', "torpor.toml:3: [[models]] source:"),
        (
            '[server]\nlog_file = "nowhere/a.log"\n',
            "cannot be written: No such file or directory",
        ),
    ],
)
def test_a_start_that_cannot_be_ends_with_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "torpor.toml").write_text(text)
    gateway = Gateway(tmp_path, 0, {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)})
    done = gateway.torpor("serve", check=False)
    assert done.returncode == 1
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("required", "permitted"), [(True, False), (True, True), (False, False)])
def test_a_sandbox_may_be_required(tmp_path: Path, required: bool, permitted: bool) -> None:
    """Without CAP_SYS_ADMIN there are no namespaces."""
    port = free_port()
    (tmp_path / "torpor.toml").write_text(
        f"[server]\nport = {port}\n[metrics]\nenabled = false\n"
        f"[engines]\nsnapshots = false\nrequire_sandbox = {str(required).lower()}\n"
        f'[[models]]\nid = "m"\nsource = "{MODELS / CHAT_MODEL}"\ndtype = "bfloat16"\n'
    )
    drop = [] if permitted else ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--"]
    process = subprocess.Popen(
        [*drop, sys.executable, "-m", "gateway.cli", "serve"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    last = next((line for line in lines if "listening on" in line or line.startswith("torpor:")), "")
    process.terminate()
    process.communicate(timeout=60)
    if required and not permitted:
        assert last.startswith("torpor: engines would not be fully isolated on this host: namespaces (")
    else:
        assert "listening on" in last


def test_a_port_in_use_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        (tmp_path / "torpor.toml").write_text(f"[server]\nport = {port}\n")
        gateway = Gateway(tmp_path, port, {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)})
        done = gateway.torpor("serve", check=False)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
