"""Two of the client libraries, in Python and in JavaScript; ``make test-clients`` runs all of them."""

import pytest

from tests.e2e.clients.runner import CLIENTS, Client, run
from tests.process import Gateway

HERE = [client for client in CLIENTS if client.name in ("LangChain", "AI SDK")]


@pytest.mark.parametrize("client", HERE, ids=lambda client: client.name)
def test_a_client_works_unpatched(gateway: Gateway, client: Client) -> None:
    outcomes = dict(run(client, gateway))
    del outcomes["version"]
    assert outcomes == dict.fromkeys(outcomes, "ok")
    assert {"chat", "stream", "tools", "structured_output", "embeddings"} == set(outcomes)
