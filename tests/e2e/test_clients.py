"""Two of the client libraries, in Python and in JavaScript; ``make test-clients`` runs all of them."""

import re

import pytest

from tests.e2e.clients.runner import CLIENTS, FOLDER, Client, run
from tests.process import REPOSITORY, Gateway

HERE = [client for client in CLIENTS if client.name in ("LangChain", "AI SDK")]


@pytest.mark.parametrize("client", HERE, ids=lambda client: client.name)
def test_a_client_works_unpatched(gateway: Gateway, client: Client) -> None:
    outcomes = dict(run(client, gateway))
    del outcomes["version"]
    assert outcomes == dict.fromkeys(outcomes, "ok")
    assert {"chat", "stream", "tools", "structured_output", "embeddings"} == set(outcomes)


def test_the_documents_table_is_of_the_pinned_versions() -> None:
    document = (REPOSITORY / "docs/how-to/clients.md").read_text()
    pinned = (FOLDER / "requirements.txt").read_text() + (FOLDER / "package.json").read_text()
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \| ([\d.]+) \|(.*)\|$", document, flags=re.M)
    assert [package for package, _, _ in rows] == [client.package for client in CLIENTS]
    for package, version, outcomes in rows:
        assert f"{package}=={version}" in pinned or f'"{package}": "{version}"' in pinned
        assert {cell.strip() for cell in outcomes.split("|")} <= {"ok", "-"}
