"""How long one request keeps the event loop: ``python -m loadtest loop-turns [--write PAGE]``.

Starts a gateway of its own with a clock on its event loop, in front of the stand-in engine, which stands for
any server behind a ``url`` that takes chats of 4 MB. It gets large bodies, legal ones and others, one at a
time. What counts is the CPU time of the loop's thread in its longest turn: so long all other requests wait.
"""

import argparse
import gzip
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from loadtest.gateway import ADMIN_KEY, API_KEY, MODEL, Gateway
from loadtest.report import table
from loadtest.targets import standin

LIMIT_MS = 50.0
_LOCAL = "smollm2-135m"
_MOST = 4 * 1024 * 1024
_ROOM = 2000  # bytes for the rest of a body
_CHAT = "/v1/chat/completions"

CONFIG = """
[server]
port = {{port}}

[metrics]
enabled = false

[engines]
snapshots = false

[[models]]
id = "standin"
url = "{url}"

[[models]]
id = "smollm2-135m"
source = "{{root}}/models/smollm2-135m"
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """A request, and the status that it is answered with. ``make``: its body, made when it is needed."""

    name: str
    path: str
    make: Callable[[], bytes]
    status: int = 200
    key: str = API_KEY
    headers: Mapping[str, str] = field(default_factory=dict)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _chat(**fields: Any) -> bytes:
    return _json({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}], **fields})


def _text(length: int) -> str:
    return ("lorem ipsum " * (length // 12 + 1))[:length]


def _tools(number: int) -> list[dict[str, Any]]:
    properties = {f"field_{at}": {"type": "string", "description": _text(100)} for at in range(20)}
    parameters = {"type": "object", "properties": properties}
    return [
        {"type": "function", "function": {"name": f"f{at}", "parameters": parameters}} for at in range(number)
    ]


def _schema(size: int) -> dict[str, Any]:
    properties = {f"field_{at}": {"type": "string"} for at in range(size)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def _message(size: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": _text(size)}]


def _large_chat(**fields: Any) -> bytes:
    return _chat(messages=_message(_MOST - _ROOM), **fields)


TURNS = (
    Turn("a short chat", _CHAT, _chat),
    Turn("a chat with one message of 4 MB", _CHAT, _large_chat),
    Turn("a chat with 60,000 messages", _CHAT, lambda: _chat(messages=_message(20) * 60_000)),
    Turn("a chat with 40 tools", _CHAT, lambda: _chat(tools=_tools(40))),
    Turn("a chat with 1,000 tools", _CHAT, lambda: _chat(tools=_tools(1000)), status=400),
    Turn("a chat with a schema of 100 KB", _CHAT, lambda: _chat(response_format=_schema(2500))),
    Turn(
        "130 KB to tokenize",
        "/tokenize",
        lambda: _json({"model": _LOCAL, "prompt": _text(130_000)}),
    ),
    Turn(
        "130 KB to tokenize, with strings",
        "/tokenize",
        lambda: _json({"model": _LOCAL, "prompt": _text(130_000), "return_token_strs": True}),
    ),
    Turn(
        "8,000 tokens to detokenize", "/detokenize", lambda: _json({"model": _LOCAL, "tokens": [1234] * 8000})
    ),
    Turn(
        "a chat of 4 MB, compressed",
        _CHAT,
        lambda: gzip.compress(_large_chat()),
        headers={"content-encoding": "gzip"},
    ),
    Turn("a chat above 4 MB", _CHAT, lambda: _chat(messages=_message(_MOST + 1)), status=413),
    Turn("4 MB that are not JSON", _CHAT, lambda: b'{"model": "' + b"x" * (_MOST - _ROOM), status=400),
    Turn("4 MB of nested lists", _CHAT, lambda: b'{"messages":' + b"[" * 2_000_000, status=400),
    Turn("a chat of 4 MB with a wrong field", _CHAT, lambda: _large_chat(n=0), status=400),
    Turn("a chat of 4 MB above a limit", _CHAT, _large_chat, status=429, key="busy"),
    Turn("a chat of 4 MB with a wrong key", _CHAT, _large_chat, status=401, key="wrong"),
    Turn(
        "a project with a name of 60 KB",
        "/v1/organization/projects",
        lambda: _json({"name": _text(60_000)}),
        status=400,
        key=ADMIN_KEY,
    ),
)


class TimedGateway(Gateway):
    """A gateway with a clock on its event loop."""

    def longest_ms(self, turn: Turn, keys: Mapping[str, str], body: bytes) -> float:
        """The longest turn while the request is answered. Raises AssertionError for another status."""
        self.http.post("/loop-turns").raise_for_status()
        headers = {
            "authorization": f"Bearer {keys[turn.key]}",
            "content-type": "application/json",
            **turn.headers,
        }
        response = self.http.post(turn.path, content=body, headers=headers)
        if response.status_code != turn.status:
            raise AssertionError(f"{turn.name}: {response.status_code} {response.text[:300]}")
        longest_ms: float = self.http.get("/loop-turns").json()["longest_ms"]
        return longest_ms


def _busy_key(gateway: Gateway) -> str:
    """The key of a project that may send one request in a minute, and has."""
    project = gateway.request("POST", "/v1/organization/projects", {"name": "busy"}, key=ADMIN_KEY)["id"]
    path = f"/v1/organization/projects/{project}/service_accounts"
    value: str = gateway.request("POST", path, {"name": "busy"}, key=ADMIN_KEY)["api_key"]["value"]
    limit = {"subject_type": "project", "subject_id": project, "max_requests_per_1_minute": 1}
    gateway.request("POST", "/v1/torpor/limits", limit, key=ADMIN_KEY)
    headers = {"authorization": f"Bearer {value}"}
    gateway.http.post(_CHAT, json=json.loads(_chat()), headers=headers).raise_for_status()
    return value


def measure(rounds: int) -> dict[str, tuple[int, list[float]]]:
    """The size of each body in bytes, and the longest turn of each round in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="torpor-turns-") as name, standin(Path(name)) as engine:
        folder = Path(name) / "gateway"
        folder.mkdir()
        gateway = TimedGateway(folder, CONFIG.format(url=engine.url), module="loadtest.timed_gateway")
        with gateway.serving():
            keys = {**gateway.keys, "wrong": "sk-wrong", "busy": _busy_key(gateway)}
            results = {}
            for turn in TURNS:
                body = turn.make()
                turns = [gateway.longest_ms(turn, keys, body) for _ in range(rounds)]
                results[turn.name] = len(body), turns
            return results


def page(results: Mapping[str, tuple[int, list[float]]]) -> str:
    """The table in Markdown."""
    rows = [
        [name, f"{size:,}", f"{statistics.median(values):.1f}", f"{max(values):.1f}"]
        for name, (size, values) in results.items()
    ]
    return "\n".join(
        [
            "# Turns of the event loop",
            "",
            f"`python -m loadtest loop-turns`: Linux {platform.release()}. The CPU time of the longest turn "
            "of the gateway's event loop while one request is answered: so long all others wait. The limit "
            f"is {LIMIT_MS:g} ms.",
            "",
            table(["request", "bytes", "median ms", "most ms"], rows),
            "",
        ]
    )


def main() -> None:
    """Print the table; exit code 1 if a turn is too long."""
    parser = argparse.ArgumentParser(prog="python -m loadtest loop-turns", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each request")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this file as well")
    options = parser.parse_args()
    try:
        results = measure(options.rounds)
    except httpx.HTTPError as error:
        sys.exit(f"loop-turns: {error}")
    text = page(results)
    print(text)
    if options.write is not None:
        options.write.write_text(text)
    slow = [name for name, (_, values) in results.items() if statistics.median(values) > LIMIT_MS]
    if slow:
        sys.exit(f"longer than {LIMIT_MS:g} ms: {', '.join(slow)}")


if __name__ == "__main__":
    main()
