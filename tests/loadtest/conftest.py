"""The stand-in engine of the load tests, in a process of its own."""

from collections.abc import Iterator

import pytest

from loadtest.targets import Engine, standin


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The stand-in that runs."""
    with standin(tmp_path_factory.mktemp("engine")) as running:
        yield running
