"""The command, with the gateway running and without."""

import json
import subprocess
import time

import openai
import pytest

from tests.process import CHAT_MODEL, MODELS, Gateway, running_gateway


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """An installation whose gateway has been stopped; it has no model."""
    with running_gateway(tmp_path_factory.mktemp("bare"), models="") as started:
        started.end()
        return started


def test_a_tenant_from_nothing(gateway: Gateway) -> None:
    created = json.loads(gateway.torpor("org", "create", "acme", "--json").stdout)
    gateway_of_acme = Gateway(
        gateway.folder,
        gateway.port,
        {**gateway.environment, "TORPOR_ADMIN_KEY": created["admin_api_key"]["value"]},
    )
    project = gateway_of_acme.torpor("project", "create", "web").stdout.strip()
    key = gateway_of_acme.torpor("key", "create", "--project", project).stdout.strip()
    client = gateway.client(key)
    assert len(list(client.models.list())) == 2
    listed = json.loads(gateway_of_acme.torpor("key", "list", "--project", project, "--json").stdout)
    assert key not in json.dumps(listed)
    assert json.loads(gateway.torpor("project", "list", "--json").stdout)[0]["id"] != project
    gateway_of_acme.torpor("key", "revoke", listed[0]["id"], "--project", project)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    second = gateway_of_acme.torpor("key", "create", "--project", project).stdout.strip()
    assert list(gateway.client(second).models.list())
    gateway.torpor("org", "revoke", "acme")
    with pytest.raises(openai.AuthenticationError):
        gateway.client(second).models.list()
    assert gateway_of_acme.torpor("project", "list", check=False).returncode == 1


def test_commands_find_the_gateway_that_runs_on_another_port_than_they_are_told(gateway: Gateway) -> None:
    elsewhere = Gateway(gateway.folder, gateway.port, {**gateway.environment, "TORPOR_PORT": "9"})
    assert CHAT_MODEL in elsewhere.torpor("engines", "--once").stdout
    assert f"{gateway.port}, held by the running gateway" in elsewhere.torpor("doctor", check=False).stdout


def test_a_snapshot_that_cannot_be_made_is_told_with_its_cause_without_a_gateway(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    models = f"""
[[models]]
id = "broken"
source = "{MODELS}/{CHAT_MODEL}"
engine_args = ["--no-such-option"]
"""
    folder = tmp_path_factory.mktemp("broken")
    with running_gateway(folder, models=models, snapshots=True) as started:
        with started.http(started.root_key) as root:
            answer = root.post("/v1/torpor/engines/broken/snapshot").json()["error"]
        assert answer["code"] == "snapshot_failed"
        assert "unrecognized arguments: --no-such-option" in answer["message"]
        started.end()
        done = started.torpor("snapshot", "create", "broken", check=False)
        assert done.returncode == 1
        assert "unrecognized arguments: --no-such-option" in done.stderr
        assert "log says why" not in done.stderr
        started.start()


def test_an_expired_key_is_refused(gateway: Gateway) -> None:
    project = json.loads(gateway.torpor("project", "list", "--json").stdout)[0]["id"]
    soon = int(time.time()) + 8
    key = gateway.torpor("key", "create", "--project", project, "--expires-at", str(soon)).stdout.strip()
    assert list(gateway.client(key).models.list())
    time.sleep(max(0.0, soon + 0.1 - time.time()))
    with pytest.raises(openai.AuthenticationError) as caught:
        gateway.client(key).models.list()
    assert "expired" in caught.value.message


def test_an_archived_projects_keys_are_refused(gateway: Gateway) -> None:
    project = gateway.torpor("project", "create", "short-lived").stdout.strip()
    key = gateway.torpor("key", "create", "--project", project).stdout.strip()
    assert list(gateway.client(key).models.list())
    gateway.torpor("project", "revoke", project)
    with pytest.raises(openai.AuthenticationError):
        gateway.client(key).models.list()


def test_chat_streams_an_answer(gateway: Gateway) -> None:
    done = gateway.torpor("chat", CHAT_MODEL, "What is the capital of France?", "--temperature", "0")
    assert "Paris" in done.stdout
    failed = gateway.torpor("chat", "nobody", "Hello", check=False)
    assert failed.returncode == 1
    assert "does not exist" in failed.stderr


def test_usage_prints_a_table(gateway: Gateway) -> None:
    heads, *rows = gateway.torpor("usage").stdout.splitlines()
    assert heads.split() == ["day", "project_id", "model", "requests", "input", "cached", "output"]
    assert any(CHAT_MODEL in row for row in rows)


def test_doctor(gateway: Gateway) -> None:
    findings = json.loads(gateway.torpor("doctor", "--json").stdout)
    levels = {finding["subject"]: finding["level"] for finding in findings}
    assert {"Python", "vLLM", "CPU", "memory", "snapshots", "port", "database"} <= set(levels)
    assert "fails" not in levels.values()


def test_hello_prints_lines_that_work_as_they_stand(gateway: Gateway) -> None:
    text = gateway.torpor("hello").stdout
    curl = next(line for line in text.splitlines() if "curl -sS" in line)
    snippet = text[text.index("With Python:") :].partition("\n\n")[2]
    for script in (curl, snippet):
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=gateway.folder,
            env={**gateway.environment, "no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "Paris" in done.stdout


def test_commands_work_on_the_database_when_no_gateway_runs(bare: Gateway) -> None:
    project = bare.torpor("project", "create", "offline").stdout.strip()
    assert bare.torpor("key", "create", "--project", project).stdout.startswith("sk-")
    assert project in bare.torpor("project", "list").stdout
    assert bare.torpor("stop").stdout == "no gateway is running\n"


def test_a_lost_root_key_is_replaced_on_the_host(bare: Gateway, gateway: Gateway) -> None:
    new = bare.torpor("key", "rotate-root").stdout.strip()
    assert new.startswith("sk-root-")
    with_old = Gateway(bare.folder, bare.port, {**bare.environment, "TORPOR_ROOT_KEY": bare.root_key})
    refused = with_old.torpor("org", "list", check=False)
    assert refused.returncode == 1
    assert "invalid_api_key" in refused.stderr
    assert "demo" in bare.torpor("org", "list").stdout, "the credentials file has the new one"
    with_new = Gateway(bare.folder, bare.port, {**bare.environment, "TORPOR_ROOT_KEY": new})
    assert "demo" in with_new.torpor("org", "list").stdout
    busy = gateway.torpor("key", "rotate-root", check=False)
    assert "is in use by another gateway" in busy.stderr


def test_set_up_does_not_replace_keys_that_were_taken_away(bare: Gateway) -> None:
    file = bare.folder / ".torpor/credentials.env"
    elsewhere = file.rename(bare.folder / "vault.env")
    refused = bare.torpor("setup", check=False)
    assert refused.returncode == 1
    assert "put the file back" in refused.stderr
    elsewhere.rename(file)
    bare.torpor("setup")


def test_set_up_twice_changes_nothing(bare: Gateway) -> None:
    before = (bare.folder / ".torpor/credentials.env").read_text()
    assert bare.torpor("setup").stdout == ""
    assert (bare.folder / ".torpor/credentials.env").read_text() == before
    assert (bare.folder / ".torpor/credentials.env").stat().st_mode & 0o777 == 0o600
