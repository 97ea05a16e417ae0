"""Runs cases that import vLLM, which takes seconds and stays in memory, in a process of their own."""

import subprocess
import sys
from pathlib import Path


def run_cases(name: str) -> None:
    """Run the tests of a file of this folder. Raises `AssertionError` with pytest's output if one fails."""
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning"]
    command = [sys.executable, "-m", "pytest", *options, str(Path(__file__).with_name(name))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
