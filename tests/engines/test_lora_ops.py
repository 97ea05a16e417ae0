"""The CPU's LoRA ops. Their cases import vLLM, which takes seconds and warns: in a process of their own."""

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("cases_lora_ops.py")


def test_the_cases_of_the_lora_ops() -> None:
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning"]
    command = [sys.executable, "-m", "pytest", *options, str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
