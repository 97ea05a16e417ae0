"""Resolves ``requirements.lock`` again, and writes the bill of materials of what it pins.

``python -m engines.setup.lock_file LOCK SBOM [--keep]``. pip's own resolver decides, in a dry run; what must
not be installed is left out of what it decided. With ``--keep`` the pins stay, and only their hashes and the
bill of materials are written again. Where pip's own index has no CPU build of PyTorch, the one that
``TORCH_INDEX`` names is asked too. The bill of materials is CycloneDX 1.6 in JSON
(https://cyclonedx.org/docs/1.6/json/).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec", "triton"})
"""Required by others and not needed: the first three do not import beside the CPU build of torch, triton
has no CPU backend (docs/decisions/0002-lock-file.md)."""
_HEADER = """\
# Every package of Torpor's environment by version and hash: Linux x86-64, Python 3.11, PyTorch for the CPU.
# Install it whole and with --no-deps; docs/decisions/0002-lock-file.md says why. `make lock` resolves again.
"""


def main() -> None:
    """Write both files; exits with pip's own code if it finds no solution."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("lock", type=Path)
    parser.add_argument("sbom", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the pins")
    options = parser.parse_args()
    if options.keep:
        pins = [line.partition(" ")[0] for line in options.lock.read_text().splitlines() if "==" in line]
        report = _resolved(["--no-deps", *pins])
    else:
        report = _resolved(_requirements())
    packages = sorted((package for package in report["install"] if _name(package) not in LEFT_OUT), key=_name)
    options.lock.write_text(_HEADER + "".join(f"{_pin(package)}\n" for package in packages))
    options.sbom.write_text(json.dumps(bill_of_materials(packages), indent=1) + "\n")


def bill_of_materials(packages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The packages of pip's installation report as a CycloneDX document."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "torpor"}},
        "components": [
            {
                "type": "library",
                "bom-ref": f"pkg:pypi/{_name(package)}@{package['metadata']['version']}",
                "name": _name(package),
                "version": package["metadata"]["version"],
                "purl": f"pkg:pypi/{_name(package)}@{package['metadata']['version']}",
                "hashes": [{"alg": "SHA-256", "content": _digest(package)}],
            }
            for package in packages
        ],
    }


def _pin(package: dict[str, Any]) -> str:
    return f"{_name(package)}=={package['metadata']['version']} --hash=sha256:{_digest(package)}"


def _name(package: dict[str, Any]) -> str:
    """The normalized name (https://packaging.python.org/specifications/name-normalization/)."""
    return re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()


def _digest(package: dict[str, Any]) -> str:
    digest: str = package["download_info"]["archive_info"]["hashes"]["sha256"]
    return digest


def _requirements() -> list[str]:
    document = tomllib.loads(Path("pyproject.toml").read_text())
    project = document["project"]
    extras = project["optional-dependencies"]
    requirements = [_cpu_build(line) for line in (*project["dependencies"], *extras["cpu"], *extras["dev"])]
    return [*requirements, *document["build-system"]["requires"]]


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


if __name__ == "__main__":
    main()
