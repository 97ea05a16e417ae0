"""The log file: bounded, and nothing that the process says is lost when it is rotated."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.process import REPOSITORY

_PROGRAM = """
import logging, os, sys
from pathlib import Path
from gateway.telemetry.logs import LogFile, configure_logging

print("before", flush=True)
configure_logging("info", "text", LogFile(Path("a.log"), 2000, 2))
for number in range(300):
    logging.getLogger("torpor.test").info("line %d", number)
os.write(2, b"the stack of a crash\\n")
print("the last words", flush=True)
"""


def _run(folder: Path, output: Path) -> None:
    with output.open("ab") as opened:
        subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            cwd=folder,
            env={"PYTHONPATH": str(REPOSITORY)},
            stdout=opened,
            stderr=opened,
            timeout=60,
            check=True,
        )


def test_what_leads_to_the_log_follows_its_rotation(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    _run(tmp_path, log)
    lines = log.read_text().splitlines()
    assert lines[-3].endswith("test: line 299")
    assert lines[-2:] == ["the stack of a crash", "the last words"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert all(file.stat().st_size <= 2100 for file in tmp_path.iterdir())


def test_standard_error_of_its_own_is_left_alone(tmp_path: Path) -> None:
    _run(tmp_path, tmp_path / "terminal")
    assert (tmp_path / "terminal").read_text() == "before\nthe stack of a crash\nthe last words\n"
    assert "line 299" in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize("written", [10, 5000])
def test_what_is_written_past_the_log_counts_for_its_size(tmp_path: Path, written: int) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"x" * written)
    _run(tmp_path, log)
    assert log.stat().st_size < 2100
