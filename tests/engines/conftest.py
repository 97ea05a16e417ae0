"""Fixtures for the tests of engines/."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coldstart.criu import program
from coldstart.criu.program import Criu
from tests.engines.support import CRIU_DIR


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder with a short path, as Unix sockets need it."""
    with tempfile.TemporaryDirectory(prefix="torpor-") as folder:
        yield Path(folder)


@pytest.fixture
def wrapped_criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real CRIU, which first runs the shell script that is returned, with CRIU's own arguments.

    A sandbox sees the script's folder read-only.
    """
    folder = tmp_path / "criu"
    shutil.copytree(CRIU_DIR, folder, copy_function=os.link, symlinks=True)
    script = folder / "before.sh"
    script.write_text("")
    real = program.find(folder)
    here = [word.replace(str(folder), '"$(dirname "$0")"') for word in real.argv]
    wrapper = folder / "criu.sh"
    wrapper.write_text(f'#!/bin/sh -p\n. "$(dirname "$0")/before.sh"\nexec {" ".join(here)} "$@"\n')
    wrapper.chmod(0o755)
    wrapped = Criu((str(wrapper),), real.version, folder=folder)
    monkeypatch.setattr("coldstart.criu.program.find", lambda _: wrapped)
    return script
