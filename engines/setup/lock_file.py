"""Resolves ``requirements.lock`` again: ``python -m engines.setup.lock_file > requirements.lock``.

pip's own resolver decides, in a dry run; what must not be installed is left out of what it decided. Where
pip's own index has no CPU build of PyTorch, the one that ``TORCH_INDEX`` names is asked too.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec", "triton"})
"""Required by others and not needed: the first three do not import beside the CPU build of torch, triton
has no CPU backend (docs/decisions/0002-lock-file.md)."""
_HEADER = """\
# Every package of Torpor's environment, pinned: Linux x86-64, Python 3.11, PyTorch for the CPU. Install it
# whole and with --no-deps; docs/decisions/0002-lock-file.md says why. `make lock` resolves it again.
"""


def main() -> None:
    """Print the lock file; exits with pip's own code where it finds no solution."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [_cpu_build(line) for line in (*project["dependencies"], *extras["cpu"], *extras["dev"])]
    report = _resolved([*requirements, *_build_requirements()])
    pins = {}
    for item in report["install"]:
        name = item["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
        if name not in LEFT_OUT:
            pins[name] = item["metadata"]["version"]
    print(_HEADER + "\n".join(f"{name}=={version}" for name, version in sorted(pins.items())))


def _cpu_build(requirement: str) -> str:
    """PyPI's own torch is the one for CUDA, and brings its libraries along."""
    return f"{requirement}+cpu" if requirement.startswith("torch==") else requirement


def _resolved(requirements: list[str]) -> dict[str, Any]:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", "-"]
    index = os.environ.get("TORCH_INDEX")
    for more in ([], ["--extra-index-url", index] if index else []):
        done = subprocess.run([*pip, *more, *requirements], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if done.returncode == 0:
            report: dict[str, Any] = json.loads(done.stdout)
            return report
    sys.exit(done.returncode)


def _build_requirements() -> list[str]:
    document = tomllib.loads(Path("pyproject.toml").read_text())
    requires: list[str] = document["build-system"]["requires"]
    return requires


if __name__ == "__main__":
    main()
