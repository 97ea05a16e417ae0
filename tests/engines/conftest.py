"""Fixtures for the tests of engines/."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder with a short path, as Unix sockets need it."""
    with tempfile.TemporaryDirectory(prefix="torpor-") as folder:
        yield Path(folder)
