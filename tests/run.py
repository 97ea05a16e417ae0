"""Runs the tests as ``make test`` does: those that drive real engines beside all others.

Either half leaves a core idle most of the time. ``python -m tests.run [pytest's arguments]``: with a path
among them pytest is run as it is.
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_HALVES = (
    ("tests/e2e", "tests/engines"),
    (
        "tests/gateway",
        "tests/tenants",
        "tests/metering",
        "tests/coldstart",
        "tests/loadtest",
        "tests/test_documents.py",
        "tests/test_errors.py",
        "tests/test_house_style.py",
        "tests/test_layering.py",
        "tests/test_references.py",
    ),
)
_NOTHING_COLLECTED = 5


def main(arguments: list[str]) -> int:
    """The exit code."""
    if any(Path(argument.partition("::")[0]).exists() for argument in arguments):
        return subprocess.call(_pytest(arguments, "all"))
    _check_complete()
    with tempfile.TemporaryFile() as output:
        second = subprocess.Popen(
            _pytest([*_HALVES[1], *arguments], "second"), stdout=output, stderr=subprocess.STDOUT
        )
        first = subprocess.Popen(_pytest([*_HALVES[0], *arguments], "first"))
        signal.signal(signal.SIGTERM, lambda *_: _end(first, second))
        codes = [_wait(first), _wait(second)]
        output.seek(0)
        sys.stdout.write(output.read().decode(errors="replace"))
    failed = [code for code in codes if code not in (0, _NOTHING_COLLECTED)]
    return failed[0] if failed else min(codes)


def _end(*halves: subprocess.Popen[bytes]) -> None:
    for half in halves:
        half.terminate()


def _wait(half: subprocess.Popen[bytes]) -> int:
    """An interrupt from the terminal reaches the halves as well: they end, and say what they have done."""
    while True:
        try:
            return half.wait()
        except KeyboardInterrupt:
            continue


def _pytest(arguments: list[str], name: str) -> list[str]:
    cache = f"cache_dir=.pytest_cache/{name}"
    return [sys.executable, "-m", "pytest", "-o", cache, *arguments]


def _check_complete() -> None:
    """No test is in neither half."""
    halves = {Path(path) for half in _HALVES for path in half}
    for test in Path("tests").rglob("test_*.py"):
        if not halves & {test, *test.parents}:
            raise SystemExit(f"{test} is in neither half of tests/run.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
