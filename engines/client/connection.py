"""One HTTP/1.1 connection to an engine: a request at a time, its answer read as it comes (RFC 9112).

llhttp (httptools) parses; nothing is copied but into the pieces that it hands out. A reader that is slow
stops the engine: past 256 KiB unread, the socket is not read any further.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from engines.errors import EngineBroken

_HIGH_WATER = 256 * 1024
_MAX_HEAD = 64 * 1024


class Connection(asyncio.Protocol):
    """What asyncio calls when bytes come, and what an exchange reads its answer from.

    An exchange is `begin`, `head`, then `pour`, or `read` until it gives nothing; then it is ``whole``, and
    ``reusable`` tells whether there may be another one. ``on_idle`` is called when an answer that was left
    before its end has come to it, ``on_lost`` when the connection is gone. ``paused``: a slow reader keeps
    the engine waiting. ``since`` is the loop's time at which something was last sent or received.

    It has many attributes because asyncio's callbacks and the parser's share the state of one HTTP answer.
    """

    def __init__(
        self, on_idle: "Callable[[Connection], None]", on_lost: "Callable[[Connection], None]"
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_idle, self._on_lost = on_idle, on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self._pieces: list[bytes] = []
        self._unread = 0
        self.paused = False
        self._error: EngineBroken | None = None
        self._busy = False
        self.left = False
        self._head_bytes = 0
        self._head_seen = False
        self.whole = False
        self._until_close = False
        self._keep_alive = False
        self.since = self._loop.time()
        self.status = 0
        self.headers: dict[str, str] = {}

    # What an exchange does.

    def begin(self, request: bytes) -> None:
        """Send a whole request. Raises `EngineBroken` where the connection is gone."""
        if self._transport is None or self._error is not None or self._transport.is_closing():
            raise self._error or EngineBroken("the engine closed the connection")
        self._busy, self.left = True, False
        self._head_bytes, self._head_seen = 0, False
        self.whole = self._until_close = self._keep_alive = False
        self.status, self.headers = 0, {}
        self.since = self._loop.time()
        self._transport.write(request)

    async def head(self) -> None:
        """Wait for the answer's status and headers. Raises `EngineBroken`."""
        while not self._head_seen:
            await self._news()

    async def read(self) -> bytes:
        """What has come of the body since the last time, waiting for something; empty at its end.

        Raises `EngineBroken` when it breaks off, once what came before has been read.
        """
        while not self._pieces:
            if self.whole:
                return b""
            await self._news()
        return self._unread_data()

    async def pour(self, sink: Callable[[bytes], bool]) -> bool:
        """Give the body to ``sink``, each piece within the turn that brings it, while that returns True.

        Returns whether the sink wanted no more; False at the body's end. Raises `EngineBroken` as `read`
        does; a sink may raise nothing else.
        """
        while not self._pieces or sink(self._unread_data()):
            if self.whole:
                return False
            self._sink = sink
            try:
                await self._news()
            finally:
                stopped, self._sink = self._sink is None, None
            if stopped:
                return True
        return True

    def _unread_data(self) -> bytes:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._unread = 0
        if self.paused and self._transport is not None:
            self.paused = False
            self._transport.resume_reading()
        return data

    def leave(self) -> None:
        """Call ``on_idle`` at the end of the answer, which is not read on. Nothing may come before that."""
        self.left = True
        self.since = self._loop.time()

    @property
    def reusable(self) -> bool:
        """Whether an exchange has come to its end and another may begin."""
        return (
            self.whole
            and self._keep_alive
            and self.status
            < 500  # uvicorn closes the connection after an exception, though it does not say so
            and self._error is None
            and not self._pieces
            and self._transport is not None
            and not self._transport.is_closing()
        )

    def fail(self, message: str) -> None:
        """Break the connection off; a waiting reader gets the error."""
        if self._error is None:
            self._error = EngineBroken(message)
        self.close()
        self._wake()

    def close(self) -> None:
        """At once: what was asked for is aborted in the engine."""
        if self._transport is not None:
            self._transport.abort()

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.since = self._loop.time()
        if not self._busy:
            self.fail("the engine sent data outside of an answer")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail("the engine's answer is not HTTP/1.1")
            return
        if not self._head_seen:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD:
                self.fail(f"the head of the engine's answer is larger than {_MAX_HEAD} bytes")
                return
        if self._sink is not None and self._pieces:
            self._pour_on(self._sink)
            return
        if self._unread > _HIGH_WATER and not self.paused and self._transport is not None:
            self.paused = True
            self._transport.pause_reading()
        self._wake()
        if self.left:
            self._after_leaving()

    def _pour_on(self, sink: Callable[[bytes], bool]) -> None:
        try:
            wants_more = sink(self._unread_data())
        except EngineBroken as error:
            self.whole = False  # though it may have come to its end
            self.fail(str(error))
            return
        if not wants_more:
            self._sink = None
        if self.whole or not wants_more:
            self._wake()

    def _after_leaving(self) -> None:
        if self._pieces:
            self.fail("the engine's answer went on after its end")
        elif self.whole:
            self.left = False
            self._on_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._until_close and self._head_seen and exc is None:
            self.whole = True
        elif self._error is None:
            reason = f": {type(exc).__name__}" if exc is not None else " before its answer was whole"
            self._error = EngineBroken(f"the engine closed the connection{reason}")
        self._transport = None
        self._wake()
        self._on_lost(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.whole:
            self._error = EngineBroken("the engine answered twice")
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_seen:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self.whole:  # a second answer changes nothing of the first
            return
        self.status = self._parser.get_status_code()
        if self._interim():
            return
        self._head_seen = True
        self._keep_alive = self._parser.should_keep_alive()
        self._until_close = "content-length" not in self.headers and "transfer-encoding" not in self.headers

    def on_body(self, body: bytes) -> None:
        if not self.whole:
            self._pieces.append(body)
            self._unread += len(body)

    def on_message_complete(self) -> None:
        if self._interim():
            self.headers = {}
            return
        self.whole = True
        self._busy = False

    def _interim(self) -> bool:
        """100 Continue and its like come before the answer and say nothing."""
        return 100 <= self.status < 200
