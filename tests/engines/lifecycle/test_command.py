"""What an engine sees of the gateway's environment."""

from pathlib import Path

import pytest

from engines.lifecycle.command import environment
from engines.lifecycle.engine_root import host_root

FOLDERS = (Path("/run/torpor/engine"), Path("/var/cache/torpor"), host_root())


def test_a_snapshot_does_not_depend_on_the_shell_that_starts_the_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    before = environment(*FOLDERS)
    monkeypatch.setenv("PATH", "/opt/tools:/usr/bin:/bin")
    monkeypatch.setenv("SHELL_SETTING", "1")
    assert environment(*FOLDERS) == before


def test_an_engine_sees_no_secret_of_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORPOR_ROOT_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "https_proxy"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in environment(*FOLDERS).values()
