"""The commands of docs/how-to/administration.md, and the rotation of a key, as an operator types them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.process import REPOSITORY, Gateway


def _five_commands() -> list[str]:
    page = (REPOSITORY / "docs/how-to/administration.md").read_text()
    result = re.search(r"## A tenant in five commands\n.*?```sh\n(.*?)```", page, re.DOTALL)
    assert result is not None
    return result[1].strip().splitlines()


def test_five_commands_onboard_a_tenant(routed: Gateway, tmp_path: Path) -> None:
    commands = _five_commands()
    assert len(commands) == 5
    (tmp_path / "torpor").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway.cli "$@"\n')
    (tmp_path / "torpor").chmod(0o755)
    script = "\n".join(["set -eu", ". .torpor/credentials.env", *commands]).replace("smollm2-135m", "far")
    path = f"{tmp_path}:{routed.environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\necho; echo $PROJECT $TORPOR_ADMIN_KEY $TORPOR_API_KEY"],
        cwd=routed.folder,
        env={**routed.environment, "PATH": path, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, answer, last = done.stdout.strip().splitlines()
    assert '"choices"' in answer
    project, admin_key, key = last.split()
    environment = {**routed.environment, "TORPOR_ADMIN_KEY": admin_key}
    acme = Gateway(routed.folder, routed.port, environment)
    (listed,) = json.loads(acme.torpor("key", "list", "--project", project, "--json").stdout)
    assert (listed["name"], listed["scopes"]) == ("website", ["model.request"])
    renewed = acme.torpor("key", "rotate", listed["id"], "--overlap-seconds", "600").stdout.strip()
    assert [list(routed.client(item).models.list()) for item in (key, renewed)]
    (old, new) = json.loads(acme.torpor("key", "list", "--project", project, "--json").stdout)
    assert (old["id"], old["expires_at"] is not None) == (listed["id"], True)
    again = acme.torpor("key", "rotate", new["id"]).stdout.strip()
    with pytest.raises(openai.AuthenticationError):
        routed.client(renewed).models.list()
    assert list(routed.client(again).models.list())
    refused = acme.torpor("key", "rotate", new["id"], check=False)
    assert (refused.returncode, refused.stderr) == (1, "torpor: No such key. (not_found)\n")


def test_the_python_of_the_page_makes_a_key(routed: Gateway) -> None:
    page = (REPOSITORY / "docs/how-to/administration.md").read_text()
    result = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert result is not None
    keys = {"TORPOR_BASE_URL": routed.base_url, "TORPOR_ADMIN_KEY": routed.admin_key}
    loopback = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", result[1]],
        env={**routed.environment, **keys, **loopback},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(routed.client(done.stdout.strip()).models.list())
