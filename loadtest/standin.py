"""A stand-in for vLLM's OpenAI server that computes nothing and costs little: what a gateway adds shows.

    python -m loadtest.standin --tcp PORT --uds PATH

It injects no faults (``tests/standin.py``) and does not sleep (``tests/engines/standin.py``).

Each token of a stream is a write of its own, one after the other unless the request asks for a pace
(`loadtest.wire`). With ``--counts`` the tokens of a request with a number are counted in that place of a
file, an array of 32-bit integers mapped into memory: the count outlives a kill.
``GET /standin/state`` tells what has been asked, generated and broken off; ``DELETE`` of it forgets that.
"""

import argparse
import asyncio
import mmap
import signal
import struct
import time
from email.utils import formatdate
from pathlib import Path
from typing import cast

import httptools
import msgspec
import uvloop

from loadtest.collector import collect_rarely
from loadtest.wire import Answer, BadBody, answer_to

_MOST_TAGS = 100_000
_BACKLOG = 4096
_HIGH_WATER = 256 * 1024
_STREAM_HEAD = (
    b"content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Ending(msgspec.Struct):
    """What became of a request with a tag: ``at`` is of CLOCK_MONOTONIC, seconds."""

    at: float
    generated: int
    whole: bool


class State(msgspec.Struct):
    """What the stand-in has done since it was started, or asked to forget."""

    requests: int = 0
    tokens: int = 0
    running: int = 0
    broken_off: int = 0
    tags: dict[str, Ending] = {}


class Engine:
    """What all connections share."""

    def __init__(self, model: str, counts: mmap.mmap | None, *, counting: bool) -> None:
        self.model = model
        self.counting = counting
        self._counts = counts
        self.loop = asyncio.get_running_loop()
        self.state = State()
        self.head = b""
        self._number = 0
        self.tell_time()

    def tell_time(self) -> None:
        """The heads of the answers tell the time, which changes once a second."""
        self.head = b"HTTP/1.1 200 OK\r\ndate: %b\r\nserver: uvicorn\r\n" % formatdate(usegmt=True).encode()
        self.loop.call_later(1, self.tell_time)

    def new_id(self) -> bytes:
        """16 hexadecimal digits."""
        self._number += 1
        return b"%016x" % self._number

    def generated(self, answer: Answer, tokens: int) -> None:
        """Generate so many tokens for a request."""
        if self._counts is not None and answer.number is not None:
            struct.pack_into("<I", self._counts, 4 * answer.number, tokens)

    def ended(self, answer: Answer, generated: int) -> None:
        """A request is over, whole or not."""
        state, whole = self.state, generated >= answer.tokens
        state.tokens += generated
        state.broken_off += not whole
        if answer.tag is not None:
            state.tags[answer.tag] = Ending(time.monotonic(), generated, whole)
            if len(state.tags) > _MOST_TAGS:
                del state.tags[next(iter(state.tags))]


class Connection(asyncio.Protocol):
    """One client's connection: a request at a time."""

    __slots__ = (
        "_answer", "_body", "_engine", "_id", "_next", "_parser", "_path", "_paused", "_timer", "_transport",
    )  # fmt: skip

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._path = self._body = self._id = b""
        self._answer: Answer | None = None
        self._next = 0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_HIGH_WATER)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._over()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.close()

    def on_url(self, url: bytes) -> None:
        """httptools: the target of the request."""
        self._path = url
        self._body = b""

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of it."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """httptools: the request is whole."""
        if self._path == b"/v1/chat/completions" and self._parser.get_method() == b"POST":
            self._chat()
        else:
            self._other()

    def _chat(self) -> None:
        engine = self._engine
        try:
            answer = answer_to(self._body, counting=engine.counting)
        except BadBody as error:
            error_object = {"message": str(error), "type": "BadRequestError", "param": None, "code": 400}
            self._json(msgspec.json.encode({"error": error_object}), b"400 Bad Request")
            return
        engine.state.requests += 1
        engine.state.running += 1
        self._answer, self._id, self._next = answer, engine.new_id(), 0
        if not answer.pace_s:
            self._all()
        elif answer.plain is not None:
            self._timer = engine.loop.call_later(answer.pace_s * answer.tokens, self._all)
        else:
            self._write(engine.head + _STREAM_HEAD + answer.chunks[0].fill(self._id))
            self._next = 1
            self._paced(engine.loop.time())

    def _all(self) -> None:
        """The whole answer at once."""
        answer = self._answer
        if answer is None:
            return
        if answer.plain is not None:
            self._json(answer.plain.fill(self._id))
        else:
            self._write(self._engine.head + _STREAM_HEAD)
            for chunk in answer.chunks:
                self._write(chunk.fill(self._id))
        self._engine.generated(answer, answer.tokens)
        self._next = answer.tokens + 1
        self._over()

    def _paced(self, at: float) -> None:
        """The next token, at a fixed rate from the start: a late one makes no later one late."""
        answer = self._answer
        if answer is None:
            return
        if not self._paused:
            self._engine.generated(answer, self._next)
            self._write(answer.chunks[self._next].fill(self._id))
            self._next += 1
            if self._next > answer.tokens:
                self._over()
                return
        at += answer.pace_s
        self._timer = self._engine.loop.call_at(at, self._paced, at)

    def _over(self) -> None:
        if self._answer is not None:
            self._engine.state.running -= 1
            self._engine.ended(self._answer, max(0, self._next - 1))
            self._answer = None

    def _other(self) -> None:
        """What gateways ask besides, and the harness."""
        engine, path = self._engine, self._path
        if path == b"/standin/state":
            self._json(msgspec.json.encode(engine.state))
            if self._parser.get_method() == b"DELETE":
                engine.state = State(running=engine.state.running)
        elif path == b"/v1/models":
            model = {"id": engine.model, "object": "model", "created": 1, "owned_by": "vllm"}
            self._json(msgspec.json.encode({"object": "list", "data": [model]}))
        elif path in (b"/health", b"/ping", b"/version"):
            self._json(b'{"version":"0.32.0"}' if path == b"/version" else b"")
        else:
            self._json(b'{"detail":"Not Found"}', b"404 Not Found")

    def _json(self, body: bytes, status: bytes = b"200 OK") -> None:
        head = self._engine.head if status == b"200 OK" else b"HTTP/1.1 %b\r\nserver: uvicorn\r\n" % status
        self._write(
            b"%bcontent-length: %d\r\ncontent-type: application/json\r\nvary: Origin\r\n\r\n%b"
            % (head, len(body), body)
        )

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(arguments: argparse.Namespace, counts: mmap.mmap | None) -> None:
    """Listen until SIGTERM or SIGINT; "ready" on the standard output once it does."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine = Engine(arguments.model, counts, counting=arguments.continuous_usage)
    if arguments.tcp is not None:
        await loop.create_server(lambda: Connection(engine), "127.0.0.1", arguments.tcp, backlog=_BACKLOG)
    if arguments.uds is not None:
        await loop.create_unix_server(lambda: Connection(engine), str(arguments.uds), backlog=_BACKLOG)
    print("ready", flush=True)
    await stop.wait()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tcp", type=int, help="port on the loopback interface")
    parser.add_argument("--uds", type=Path, help="path of a Unix socket")
    parser.add_argument("--model", default="standin", help="the name that /v1/models tells")
    parser.add_argument("--counts", type=Path, help="file in which tokens are counted")
    parser.add_argument("--continuous-usage", action="store_true", help="on every chunk, asked for or not")
    arguments = parser.parse_args()
    counts = None
    if arguments.counts is not None:
        with arguments.counts.open("r+b") as file:
            counts = mmap.mmap(file.fileno(), 0)
    collect_rarely()
    uvloop.run(serve(arguments, counts))


if __name__ == "__main__":
    main()
