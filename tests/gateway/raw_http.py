"""HTTP written and read byte by byte, over a socket of the test's own."""

import json
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from tests.process import Gateway


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, its body without the framing."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error of the envelope, which every refusal has, with the id of its request."""
        assert re.fullmatch(r"[\w.:-]{1,128}", self.headers["x-request-id"])
        assert self.headers["content-type"] == "application/json"
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def code(self) -> tuple[int, str]:
        """Status and code of an error."""
        return self.status, self.error["code"]


class Connection:
    """A client's end of one connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self._file: BinaryIO = self.socket.makefile("rb")

    def send(self, *parts: bytes) -> None:
        """Send the parts, each on its own."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            self.socket.sendall(part)

    def answer(self, method: str = "POST") -> Answer:
        """The next answer; a method of HEAD has no body."""
        status = int(self._file.readline().split()[1])
        headers: dict[str, str] = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(":")
            assert name not in headers, f"{name} twice"
            headers[name] = value.strip()
        if status == 100:
            return Answer(status, headers, b"")
        return Answer(status, headers, b"" if method == "HEAD" else self._body(headers))

    def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return self._file.read(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return self._file.read()
        chunks = []
        while size := int(self._file.readline(), 16):
            chunks.append(self._file.read(size))
            self._file.readline()
        self._file.readline()
        return b"".join(chunks)

    def at_end(self) -> bool:
        """Whether the server has closed, and has sent nothing more."""
        return self._file.read(1) == b""

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@contextmanager
def connected(gateway: Gateway) -> Iterator[Connection]:
    """A connection to the gateway."""
    connection = Connection(gateway.port)
    try:
        yield connection
    finally:
        connection.close()


def head(method: str, path: str, *lines: str, version: str = "1.1") -> bytes:
    """A request's head of these lines and no others."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", *lines, "", ""]).encode("latin-1")


def chunked(body: bytes, sizes: Sequence[int] = (3, 1, 1000)) -> bytes:
    """The body in chunks of these sizes, the last for all the rest."""
    parts = []
    for size in sizes:
        if body:
            piece, body = body[:size], body[size:]
            parts.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    if body:
        parts.append(b"%x\r\n%b\r\n" % (len(body), body))
    return b"".join([*parts, b"0\r\n\r\n"])


@dataclass(frozen=True, slots=True)
class Call:
    """A good request, to one of the gateway's two ways to an endpoint."""

    gateway: Gateway
    path: str
    body: bytes

    def lines(self, *more: str, version: str = "1.1") -> list[str]:
        host = ["Host: gateway"] if version == "1.1" else []
        return [
            *host,
            f"Authorization: Bearer {self.gateway.api_key}",
            "Content-Type: application/json",
            *more,
        ]

    def request(
        self, *more: str, body: bytes | None = None, in_chunks: bool = False, version: str = "1.1"
    ) -> bytes:
        """The request with more lines in its head."""
        body = self.body if body is None else body
        framing = "Transfer-Encoding: chunked" if in_chunks else f"Content-Length: {len(body)}"
        start = head("POST", self.path, *self.lines(*more, framing, version=version), version=version)
        return start + (chunked(body) if in_chunks else body)

    def is_answered(self, answer: Answer) -> bool:
        """Whether this is the answer to the whole request, unaltered."""
        if self.path == "/v1/chat/completions":
            return answer.status == 200 and b"Paris" in answer.body
        return answer.status == 200 and b"expires_at" in answer.body


def call_of(gateway: Gateway, way: str) -> Call:
    """``fast``: taken past Starlette; ``starlette``: not."""
    if way == "fast":
        body = {"model": "far", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
        return Call(gateway, "/v1/chat/completions", json.dumps(body).encode())
    return Call(gateway, "/v1/torpor/tokens", json.dumps({"user": "anna"}).encode())


def pieces(data: bytes, size: int) -> list[bytes]:
    """The data cut into pieces, as a slow network delivers it."""
    return [data[start : start + size] for start in range(0, len(data), size)]
