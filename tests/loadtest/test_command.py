"""The command as one types it: it leaves nothing behind, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.processes import REPOSITORY, usage_of


def _command(*arguments: str, folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "loadtest", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job ignores it, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(tmp_path: Path, number: int) -> None:
    process = _command("compare", "--peers", "none", "--seconds", "60", folder=tmp_path)
    assert process.stderr is not None
    try:
        while b"direct: plain" not in process.stderr.readline():
            assert process.poll() is None
        (engine,) = _children(process.pid)
        process.send_signal(number)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()
    assert usage_of(engine).processes == 0
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_nobody_knows(tmp_path: Path) -> None:
    process = _command("compare", "--peers", "nginx,envoy", folder=tmp_path)
    _, answer = process.communicate(timeout=60)
    assert process.returncode == 2
    assert answer.startswith(b"loadtest: no such peer: envoy; there are nginx, ")
