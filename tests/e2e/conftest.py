"""One real gateway with real engines for the tests that leave it as they found it."""

from collections.abc import Iterator

import pytest

from tests.process import Gateway, running_gateway


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose engines start at their first request."""
    with running_gateway(tmp_path_factory.mktemp("gateway")) as started:
        yield started
