"""Every client against what ``make up`` configures: prints the table, and puts it into its page of docs/."""

import re
import sys
import tempfile
from pathlib import Path

from tests.e2e.clients.runner import CLIENTS, run, table
from tests.process import MODELS, REPOSITORY, running_gateway

DOCUMENT = REPOSITORY / "docs/how-to/clients.md"
_TABLE = re.compile(r"^\| client \|.*?\n(?!\|)", re.M | re.S)


def default_models() -> str:
    """The ``[[models]]`` of the example configuration, with the models of this checkout."""
    example = (REPOSITORY / "gateway/torpor.example.toml").read_text()
    models = example[example.index("[[models]]") :]
    return models.replace('source = "models/', f'source = "{MODELS}/')


def main() -> int:
    """The exit code: 1 if a check of a client failed."""
    with tempfile.TemporaryDirectory() as folder, running_gateway(Path(folder), default_models()) as gateway:
        rows = {client: run(client, gateway) for client in CLIENTS}
    text = table(rows)
    print(text, end="")
    DOCUMENT.write_text(_TABLE.sub(lambda _: text, DOCUMENT.read_text(), count=1))
    outcomes = [value for row in rows.values() for name, value in row.items() if name != "version"]
    return 0 if set(outcomes) == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
