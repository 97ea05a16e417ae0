"""A stand-in for the OpenAI-compatible servers that a ``url`` model may be, each with a dialect of its own.

It computes nothing and writes bytes that a test has put there: chunks, framing, usage and refusals as OpenAI,
Azure, OpenRouter, Groq, Moonshot, the compatible endpoints of Google and Anthropic, llama.cpp and proxies
write them, by their documentation and their users' reports. vLLM's own form has a stand-in that is held to
the real engine (`tests.standin`).
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["The", " capital", " of", " France", " is", " Paris", "."]
TEXT = "".join(WORDS)
HEAD = {"id": "chatcmpl-dialect", "object": "chat.completion.chunk", "created": 1, "model": "far"}
ABSENT: Any = object()


@dataclass(frozen=True)
class Script:
    """What is answered; ``@KEY@`` in it is the text of the request.

    ``cut``: the connection breaks after the body, which then has no end.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "text/event-stream"
    cut: bool = False


class DialectServer:
    """Answers a request as the script says that was put under the text of its last message."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scripts = self.scripts

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                key = body["messages"][-1]["content"] if "messages" in body else body.get("prompt")
                key = key or body["input"]
                script = scripts[key]
                self._answer(script, script.body.replace(b"@KEY@", key.encode()))

            def _answer(self, script: Script, body: bytes) -> None:
                self.send_response(script.status)
                self.send_header("content-type", script.content_type)
                self.send_header("transfer-encoding", "chunked")
                for name, value in script.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                # In pieces that have nothing to do with events, as a network has them.
                for start in range(0, len(body), 211):
                    piece = body[start : start + 211]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                if script.cut:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *arguments: Any) -> None:
                """Tests are quiet."""

        return Handler


@contextmanager
def dialect_server() -> Iterator[DialectServer]:
    """The server in a thread of its own."""
    started = DialectServer()
    thread = threading.Thread(target=started.server.serve_forever)
    thread.start()
    try:
        yield started
    finally:
        started.server.shutdown()
        started.server.server_close()
        thread.join()


def usage_of(prompt: Any, completion: Any) -> dict[str, Any]:
    """OpenAI's ``usage`` object."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chunk(
    delta: Any, finish: str | None = None, *, index: int = 0, usage: Any = ABSENT, **more: Any
) -> dict[str, Any]:
    """A chunk of a chat answer with one choice."""
    reported = {} if usage is ABSENT else {"usage": usage}
    return {
        **HEAD,
        "choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}],
        **reported,
    }


def text_chunks(index: int = 0) -> list[dict[str, Any]]:
    """The whole text, with the reason for its end in a chunk of its own."""
    pieces = [chunk({"content": word}, index=index) for word in WORDS]
    return [chunk({"role": "assistant", "content": ""}, index=index), *pieces, chunk({}, "stop", index=index)]


def events(chunks: list[Any], *, done: bool = True) -> bytes:
    """The chunks as OpenAI frames them."""
    lines = [b"data: " + json.dumps(item).encode() + b"\n\n" for item in chunks]
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def plain(usage: Any = ABSENT, **choice: Any) -> dict[str, Any]:
    """A whole chat answer."""
    message = {
        "index": 0,
        "message": {"role": "assistant", "content": TEXT},
        "finish_reason": "stop",
        **choice,
    }
    reported = {} if usage is ABSENT else {"usage": usage}
    return {**HEAD, "object": "chat.completion", "choices": [message], **reported}
