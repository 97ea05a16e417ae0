"""Other people's gateways, each in an environment of its own below a cache folder, of a pinned version."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from loadtest.processes import NotReady, run

_INSTALL_S = 1200.0
_STAMP = ".made"


def cache_folder() -> Path:
    """Where the environments are kept, once made."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "torpor-loadtest"


def from_pip(name: str, *packages: str) -> Path:
    """The ``bin`` of a virtual environment with these packages. Raises `NotReady`."""

    def make(folder: Path) -> None:
        run([sys.executable, "-m", "venv", str(folder)], timeout_s=_INSTALL_S)
        pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        run([*pip, *packages], timeout_s=_INSTALL_S)

    return _made(name, packages, make) / "bin"


def from_npm(name: str, packages: Mapping[str, str], overrides: Mapping[str, str]) -> Path:
    """The ``node_modules`` with these packages, by version. Raises `NotReady`."""
    if shutil.which("npm") is None:
        raise NotReady("npm is missing: apt-get install npm")
    manifest = json.dumps({"dependencies": packages, "overrides": overrides})

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(manifest)
        options = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        run(["npm", "install", *options], cwd=folder, timeout_s=_INSTALL_S)

    return _made(name, (manifest,), make) / "node_modules"


def from_debian(name: str, package: str, program: str) -> Path:
    """The program, an installed one or one that is unpacked and not installed. Raises `NotReady`."""
    installed = shutil.which(name)
    if installed is not None:
        return Path(installed)

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        run(["apt-get", "download", package], cwd=folder, timeout_s=_INSTALL_S)
        for archive in folder.glob("*.deb"):
            run(["dpkg", "-x", str(archive), str(folder)])

    return _made(name, (package,), make) / program


def _made(name: str, what: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    """The environment's folder; if it is incomplete, or of another version, it is made again."""
    folder = cache_folder() / name
    stamp, content = folder / _STAMP, "\n".join(what)
    if stamp.exists() and stamp.read_text() == content:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    make(folder)
    stamp.write_text(content)
    return folder
