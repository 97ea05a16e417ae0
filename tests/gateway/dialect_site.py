"""A gateway in front of a server with dialects, and what its answers become."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.gateway.dialect_server import DialectServer, Script, dialect_server
from tests.gateway.entries import last_entry
from tests.process import Gateway, running_gateway

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MODELS = {CHAT: "far", COMPLETIONS: "far", EMBEDDINGS: "vectors"}
_numbers = itertools.count()


@dataclass
class Site:
    """The gateway and the server behind it."""

    gateway: Gateway
    server: DialectServer
    http: httpx.Client

    def ask(self, script: Script, path: str = CHAT, **fields: Any) -> "Answer":
        """Send a request that is answered by the script, and read all of the answer."""
        key = f"question {next(_numbers):06d}"
        self.server.scripts[key] = script
        prompts: dict[str, dict[str, Any]] = {
            CHAT: {"messages": [{"role": "user", "content": key}]},
            COMPLETIONS: {"prompt": key},
            EMBEDDINGS: {"input": key},
        }
        prompt = prompts[path]
        response = self.http.post(path, json={"model": MODELS[path], **prompt, **fields})
        size = len(msgspec.json.encode(next(iter(prompt.values()))))
        return Answer(self.gateway, response, -(-size // 4))


@dataclass
class Answer:
    """A whole answer; ``input_estimate`` is what the gateway estimates of the prompt."""

    gateway: Gateway
    response: httpx.Response
    input_estimate: int

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The payloads of a stream without its end. Every event is one line of data."""
        blocks = self.response.text.split("\n\n")
        assert blocks.pop() == ""
        assert all(block.startswith("data: ") and "\n" not in block for block in blocks if block != ":")
        return [json.loads(block[6:]) for block in blocks if block not in (":", "data: [DONE]")]

    @property
    def is_done(self) -> bool:
        return self.response.text.endswith("\n\ndata: [DONE]\n\n") and self.response.text.count("[DONE]") == 1

    @property
    def text(self) -> str:
        choices = [choice for item in self.chunks for choice in item["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def usages(self) -> list[Any]:
        return [item["usage"] for item in self.chunks if item.get("usage") is not None]

    def entry(self) -> dict[str, Any]:
        return last_entry(self.gateway, self.response.headers["x-request-id"])

    def settled(self) -> tuple[str, int, int, bool]:
        """Outcome, tokens of input and output, and whether they are estimated."""
        entry = self.entry()
        return entry["outcome"], entry["input_tokens"], entry["output_tokens"], bool(entry["estimated"])


@contextmanager
def dialect_site(folder: Path) -> Iterator[Site]:
    """Both of them, started in a folder."""
    with dialect_server() as server:
        models = f'''
[[models]]
id = "far"
url = "{server.url}/v1"

[[models]]
id = "vectors"
url = "{server.url}/v1"
task = "embed"
'''
        with running_gateway(folder, models) as gateway, gateway.http() as http:
            yield Site(gateway, server, http)


def asking(include: bool) -> dict[str, Any]:
    """The fields of a stream, with or without its usage."""
    return {"stream": True, **({"stream_options": {"include_usage": True}} if include else {})}


def tokens(usage: Any) -> tuple[int, int]:
    """The prompt's and the answer's tokens of a reported usage."""
    return usage["prompt_tokens"], usage["completion_tokens"]
