"""A client that costs little: one HTTP/1.1 connection as a raw asyncio protocol, plain answers and streams.

What arrives is stamped once for each read of the socket, with CLOCK_MONOTONIC in nanoseconds, and only whole
events are looked at.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from loadtest.histogram import Histogram

# The text of a token, in the JSON of any gateway; an empty one is the role's chunk.
_TOKEN = re.compile(rb'"content": ?"((?:[^"\\]|\\.)+)"')
_DONE = b"data: [DONE]"
_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go: a URL on the loopback interface, or a Unix socket; and with which key."""

    host: str = "127.0.0.1"
    port: int = 0
    uds: str | None = None
    key: str | None = None
    path: str = "/v1/chat/completions"
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, url: str, key: str | None = None) -> Self:
        """``http://host:port[/path]`` or ``unix:/path``."""
        if url.startswith("unix:"):
            return cls(uds=url.removeprefix("unix:"), key=key)
        split = urlsplit(url)
        base = split.path.rstrip("/").removesuffix("/v1")
        path = f"{base}/v1/chat/completions"
        return cls(split.hostname or "127.0.0.1", split.port or 80, key=key, path=path)

    def request(self, body: dict[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        """The bytes of a POST of this body."""
        return self.raw(msgspec.json.encode(body), headers)

    def raw(self, content: bytes, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        """The bytes of a POST of this content, whatever it is."""
        lines = [f"POST {self.path} HTTP/1.1", f"host: {self.host}", "content-type: application/json"]
        if self.key is not None:
            lines.append(f"authorization: Bearer {self.key}")
        lines += [f"{name}: {value}" for name, value in (*self.headers, *headers)]
        lines.append(f"content-length: {len(content)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + content

    async def connect(self) -> "Connection":
        """Open a connection. Raises `OSError`, `TimeoutError`."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            if self.uds is not None:
                return (await loop.create_unix_connection(Connection, self.uds))[1]
            return (await loop.create_connection(Connection, self.host, self.port))[1]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: its bytes, and how many tokens a good answer has where it is a stream."""

    request: bytes
    streamed: bool = False
    tokens: int = 0
    stamped: bool = False
    cut_after: int | None = None
    """Break the connection off after this many tokens."""
    exact: bool = True
    """Whether an answer with fewer or more tokens is not a good one."""
    keep: bool = False
    """Keep the body of the answer."""
    expected: int = 200


class Tally:
    """What a run of requests has come to."""

    def __init__(self) -> None:
        self.total = Histogram()
        self.ttft = Histogram()
        self.itl = Histogram()
        self.delay = Histogram()
        self.good = 0
        self.cut = 0
        self.tokens = 0
        self.wanted_tokens = 0
        self.errors: Counter[str] = Counter()

    def record(self, outcome: "Outcome") -> None:
        """Count it; only a good one in the histograms."""
        self.tokens += outcome.tokens
        self.wanted_tokens += outcome.ask.tokens
        if outcome.error is not None:
            self.errors[outcome.error] += 1
            return
        if outcome.cut:
            self.cut += 1
            return
        self.good += 1
        self.total.record(outcome.end - outcome.due)
        if outcome.ask.streamed:
            self.ttft.record(outcome.first - outcome.due)

    @property
    def failed(self) -> int:
        """Requests that got no good answer."""
        return sum(self.errors.values())

    def summary(self) -> dict[str, Any]:
        """For the JSON of a run."""
        result: dict[str, Any] = {
            "good": self.good,
            "errors": dict(self.errors),
            "total": self.total.summary(),
        }
        if self.ttft.count:
            result |= {"tokens": self.tokens, "ttft": self.ttft.summary(), "itl": self.itl.summary()}
        if self.delay.count:
            result["delay"] = self.delay.summary()
        return result


@dataclass(slots=True)
class Outcome:
    """What became of a request; ``due`` is when it should have been sent. CLOCK_MONOTONIC, nanoseconds."""

    ask: Ask
    due: int
    status: int = 0
    first: int = 0
    end: int = 0
    tokens: int = 0
    cut: bool = False
    error: str | None = None
    body: bytearray = field(default_factory=bytearray)


class Connection(asyncio.Protocol):
    """A connection to a server, for one request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._outcome: Outcome | None = None
        self._tally: Tally | None = None
        self._then: Callable[[Connection, Outcome], None] | None = None
        self._rest = b""
        self._pieces: list[bytes] = []
        self._last = 0
        self._ended = False
        self._status = 0
        self._keeps = False
        self._done_seen = False

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(
        self, ask: Ask, then: "Callable[[Connection, Outcome], None]", tally: Tally, due: int | None = None
    ) -> None:
        """Send the request; ``then`` is called with what became of it.

        The tally gets the gaps and delays of tokens as they come; the outcome is the caller's to record.
        """
        self._outcome = Outcome(ask, time.monotonic_ns() if due is None else due)
        self._then, self._tally = then, tally
        self._rest, self._ended, self._done_seen = b"", False, False
        if self._transport is None:
            self._finish("connection")
        else:
            self._transport.write(ask.request)

    def close(self) -> None:
        """End the connection, whatever it is at."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._finish("connection")

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._finish("protocol")
            self.close()
            return
        outcome = self._outcome
        if outcome is None:
            return
        if self._pieces:
            piece = b"".join(self._pieces)
            self._pieces.clear()
            if outcome.ask.keep:
                outcome.body += piece
            if outcome.ask.streamed:
                self._events(outcome, piece, now)
        if self._ended:
            outcome.end = now
            self._complete(outcome)

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """httptools: the answer is whole."""
        self._ended = True
        self._status = self._parser.get_status_code()
        self._keeps = self._parser.should_keep_alive()

    def _events(self, outcome: Outcome, piece: bytes, now: int) -> None:
        data = self._rest + piece if self._rest else piece
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4)
        if end < 4:
            self._rest = data
            return
        self._rest = data[end:]
        tokens = _TOKEN.findall(data, 0, end)
        if data.find(_DONE, 0, end) >= 0:
            self._done_seen = True
        if not tokens or self._tally is None:
            return
        tally = self._tally
        if outcome.tokens:
            tally.itl.record(now - self._last)
        else:
            outcome.first = now
        if len(tokens) > 1:
            tally.itl.record(0, len(tokens) - 1)
        if outcome.ask.stamped:
            for stamp in tokens:
                tally.delay.record(now - int(stamp))
        self._last = now
        outcome.tokens += len(tokens)
        if outcome.ask.cut_after is not None and outcome.tokens >= outcome.ask.cut_after:
            outcome.cut, outcome.end = True, time.monotonic_ns()
            self.close()
            self._finish(None)

    def _complete(self, outcome: Outcome) -> None:
        outcome.status = self._status
        error = None
        if outcome.status != outcome.ask.expected:
            error = f"status {outcome.status}"
        elif outcome.ask.streamed and not self._done_seen:
            error = "no [DONE]"
        elif outcome.ask.exact and outcome.tokens != outcome.ask.tokens:
            error = "tokens missing"
        if not self._keeps:
            self.close()
        self._finish(error)

    def _finish(self, error: str | None) -> None:
        outcome, then = self._outcome, self._then
        if outcome is None or then is None:
            return
        self._outcome = self._then = None
        outcome.error = error
        outcome.end = outcome.end or time.monotonic_ns()
        then(self, outcome)
