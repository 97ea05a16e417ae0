"""What the prefix cache claims. Its cases import vLLM, which takes seconds: in a process of their own."""

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("cases_prefix_cache.py")


def test_the_cases_of_the_prefix_cache() -> None:
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning"]
    command = [sys.executable, "-m", "pytest", *options, str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
