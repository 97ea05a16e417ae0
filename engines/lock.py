"""Resolves ``requirements.lock`` anew: ``python -m engines.lock > requirements.lock``.

pip's own resolver decides, in a dry run; what must not be installed is left out of what it decided.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec"})
"""vLLM requires them; their builds do not import beside the CPU build of torch, and text needs none."""
_HEADER = """\
# Every package of Torpor's environment, pinned: Linux x86-64, Python 3.11, PyTorch for the CPU.
# Install it whole and with --no-deps; docs/decisions/0002-lock-file.md says why. `make lock` makes it anew.
"""


def main() -> None:
    """Prints the lock file; exits with pip's own code where it finds no solution."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["dev"], *_build_requirements()]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", "-"]
    done = subprocess.run([*pip, *wanted], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(done.returncode)
    report = json.loads(done.stdout)
    pins = {}
    for item in report["install"]:
        name = item["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
        if name not in LEFT_OUT:
            pins[name] = item["metadata"]["version"]
    print(_HEADER + "\n".join(f"{name}=={version}" for name, version in sorted(pins.items())))


def _build_requirements() -> list[str]:
    document = tomllib.loads(Path("pyproject.toml").read_text())
    requires: list[str] = document["build-system"]["requires"]
    return requires


if __name__ == "__main__":
    main()
