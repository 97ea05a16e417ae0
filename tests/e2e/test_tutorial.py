"""The programs of the tutorial run as they are printed there."""

import os
import re
import subprocess
import sys

import pytest

from tests.process import REPOSITORY, Gateway

_PROGRAMS = re.findall(
    r"^```python\n(.*?)^```$",
    (REPOSITORY / "docs/tutorial/first-gateway.md").read_text(),
    flags=re.M | re.S,
)


@pytest.mark.parametrize(
    ("program", "output"),
    list(
        zip(
            _PROGRAMS,
            [
                r"The capital of France is Paris\.\n\d+ tokens in, \d+ tokens out\n",
                r"(hot|paused|snapshot|cold) \d+ ms\n",
            ],
            strict=True,
        )
    ),
    ids=["first", "wake"],
)
def test_a_program_of_the_tutorial_prints_what_the_tutorial_says(
    gateway: Gateway, program: str, output: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TORPOR_BASE_URL": f"{gateway.origin}/v1", "TORPOR_API_KEY": gateway.api_key},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(output, result.stdout), result.stdout
