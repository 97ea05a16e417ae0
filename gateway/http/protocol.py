"""uvicorn's HTTP protocol with the limits that it lacks, refusing in the envelope.

A head larger than ``max_header_bytes`` is a 431, one that takes longer than ``header_timeout_s`` a 408, one
that the parser refuses a 400. Each ends the connection, after the answers to the requests before it, and so
does a trailer of that size. No application sees such a request: its headers and its line in the log are made
here. An offer to upgrade to another protocol is ignored.
"""

import asyncio
import select
import time
from collections.abc import Callable
from typing import Any, cast

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.http.answer_framing import closing_unless_continued, until_close
from gateway.http.connection import HeadCoalescingTransport, put_connection
from gateway.http.context import RequestContext, RequestRecord, log_request, record_of, request_id
from gateway.http.errors import JSON, ApiError, invalid_request
from gateway.http.request_head import CODE, framing_error, head_error, without_upgrade

_PAUSED_CHECK_S = 0.25
"""How often a connection that is not being read is looked at, for a client that has left."""


class _Refused(Exception):
    """Ends the parsing of a request that is refused, from within a callback of the parser."""


class GuardedProtocol(HttpToolsProtocol):
    """A client's connection. The limits are class attributes of a subclass made by `guarded_protocol`.

    It has many attributes because uvicorn's protocol has them, and the callbacks of asyncio share its state.
    """

    max_header_bytes: int
    header_timeout_s: float

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._in_head = False
        self._in_message = False
        self._upgrade_offered = False
        self._last_request = False  # the client has said that it sends no more
        self._ignoring = False  # what still arrives is of no request
        self._arrived = 0
        self._head_bytes = 0
        self._head_bound = 0  # of the bytes of a head, with those of other messages that came beside it
        self._valid_host = b" "  # the last one that was; this is none
        self._head_began = time.perf_counter()
        self._head_timer: asyncio.TimerHandle | None = None
        self._paused_timer: asyncio.TimerHandle | None = None
        self._refusal: ApiError | None = None
        self._last_answer: tuple[bytes, Scope, RequestRecord, int] | None = None
        self._running: RequestResponseCycle | None = None
        self.on_gone: Callable[[], None] | None = None
        self.gone = False

    @property
    def congested(self) -> bool:
        """As `ClientConnection.congested`."""
        return self.flow.write_paused

    def push(self, body: bytes) -> bool:
        """As `ClientConnection.push`: what uvicorn's ``send`` would write, without a coroutine."""
        cycle = self._running
        if (
            cycle is None
            or self.flow.write_paused
            or cycle.disconnected
            or not (cycle.response_started and cycle.chunked_encoding)
        ):
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    @property
    def body_complete(self) -> bool:
        """As `ClientConnection.body_complete`; a client that waits for 100 Continue has sent nothing yet."""
        cycle = self._running
        return cycle is not None and not cycle.more_body and not cycle.waiting_for_100_continue

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(
            asyncio.Transport, HeadCoalescingTransport(transport, self.loop, self._stop_reading)
        )
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch_head()
        self._unset_keepalive_if_required()
        if self._paused_timer is not None:
            self._paused_timer.cancel()
        running = self._running
        if running is not None and not running.response_complete:  # uvicorn tells the newest request alone
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        self.scope = {}  # type: ignore[typeddict-item]  # it leads back to the connection
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()

    def data_received(self, data: bytes) -> None:
        if self._ignoring:
            return
        self._arrived = len(data)
        self._head_bytes += self._arrived
        self._head_bound += self._arrived
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._parse_without_upgrade(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._last_request:
                self._refuse(self._refusal or _invalid())
            self._ignoring = True
            self.flow.resume_reading()  # nothing is kept, and it tells whether the client leaves
            return
        if self._head_bytes > self.max_header_bytes:
            self._refuse(_too_large(self.max_header_bytes))
        elif self.flow.read_paused and self._paused_timer is None:
            self._watch_paused()

    def _parse_without_upgrade(self, rest: memoryview) -> None:
        """Parse a head that offers an upgrade again without the offer, by a new parser; then what follows."""
        while True:
            version = self.parser.get_http_version()
            head = without_upgrade(self.parser.get_method(), self.url, version, self.headers)
            self._upgrade_offered = False
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(head)
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            else:
                return

    def on_message_begin(self) -> None:
        if self._last_request:
            raise _Refused
        self._unset_keepalive_if_required()
        super().on_message_begin()
        put_connection(cast(Scope, self.scope), self)
        self._in_head = self._in_message = True
        self._head_bytes = 0
        self._head_bound = self._arrived
        self._head_began = time.perf_counter()
        if self._head_timer is None:
            self._watch_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)
        # What comes after the head is a trailer of a chunked body. It is not read, so it is not kept.

    def on_headers_complete(self) -> None:
        self._unwatch_head()
        self._head_bytes = 0
        if self._head_bound > self.max_header_bytes and self._size() > self.max_header_bytes:
            self._refusal = _too_large(self.max_header_bytes)
            raise _Refused
        version = self.parser.get_http_version()
        fields = dict(self.headers)
        upgrade = self.parser.should_upgrade()
        if upgrade or version != "1.1" or b"transfer-encoding" in fields:
            self._refusal = framing_error(version, self.parser.get_method(), self.headers)
            if self._refusal is not None:
                raise _Refused
        if upgrade:
            self._upgrade_offered = True
            return
        app, host = self.app, fields.get(b"host")
        if host != self._valid_host or len(fields) != len(self.headers):
            error = head_error(version, self.headers)
            if error is not None:
                self.app = _refusing(error)
            elif host is not None:
                self._valid_host = host
        super().on_headers_complete()
        self.app = app
        if version == "1.0":
            self.cycle.keep_alive = self.parser.should_keep_alive()
            self.cycle.waiting_for_100_continue = False
        self._in_head = False

    def _size(self) -> int:
        """Bytes of the request line and the headers."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if self._upgrade_offered:
            return
        self._in_message = False
        self._last_request = not self.cycle.keep_alive
        super().on_message_complete()
        if self.flow.read_paused and self.cycle is self._running:
            self.flow.resume_reading()  # it tells whether the client leaves

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = until_close(app, cycle)
        elif cycle.waiting_for_100_continue:
            app = closing_unless_continued(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_head:
            self._unset_keepalive_if_required()  # the next request has begun to arrive
        if self._last_answer is not None and not self._busy() and not self.transport.is_closing():
            self._answer_last(*self._last_answer)

    def _stop_reading(self) -> bool:
        """Ignore what still arrives. Returns whether the client may still be sending."""
        unread = self._in_message or self._ignoring
        self._ignoring = True
        return unread

    def _busy(self) -> bool:
        """Whether a request that has been read is still to be answered."""
        return self._running is not None and not self._running.response_complete

    def _watch_head(self) -> None:
        self._head_timer = self.loop.call_later(self.header_timeout_s, self._head_timed_out)

    def _unwatch_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self._in_head:
            self.transport.close()
            return
        if self.flow.read_paused:  # for the requests before it: the time is not the client's
            self._watch_head()
            return
        self._refuse(
            ApiError(
                408,
                "invalid_request_error",
                "request_timeout",
                f"The headers did not arrive within {self.header_timeout_s:g} seconds.",
            )
        )

    def _watch_paused(self) -> None:
        self._paused_timer = self.loop.call_later(_PAUSED_CHECK_S, self._check_paused)

    def _check_paused(self) -> None:
        """A connection that is not read, as requests wait in it, does not tell that its client has left."""
        self._paused_timer = None
        if self.transport.is_closing() or not self.flow.read_paused:
            return
        if _has_left(self.transport):
            self.transport.abort()
        else:
            self._watch_paused()

    def _refuse(self, error: ApiError) -> None:
        """Refuse the request that is being read, after the answers to those before it, and read no more."""
        self._ignoring = True
        self._unwatch_head()
        if self.transport.is_closing():
            return
        if self._in_message and not self._in_head:
            self._refuse_body(error)
            return
        record = RequestRecord(request_id(self.headers if self._in_head else ()), self._head_began)
        self._answer_in_turn(error, self._seen(), record)

    def _refuse_body(self, error: ApiError) -> None:
        """Refuse a request whose body breaks off; where its answer has begun nothing can be said."""
        cycle = self.cycle
        scope = cast(Scope, cycle.scope)
        if cycle is not self._running:
            self.pipeline.popleft()
            self._answer_in_turn(error, scope, RequestRecord(request_id(scope["headers"]), self._head_began))
            return
        if not cycle.response_started:
            self.transport.write(_answer(error, _record_of_refused(scope, error)))
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def _answer_in_turn(self, error: ApiError, scope: Scope, record: RequestRecord) -> None:
        last = (_answer(error, record), scope, record, error.status)
        if self._busy():
            self._last_answer = last
        else:
            self._answer_last(*last)

    def _answer_last(self, answer: bytes, scope: Scope, record: RequestRecord, status: int) -> None:
        self.transport.write(answer)
        self.transport.close()
        log_request(scope, record, status)

    def _seen(self) -> Scope:
        """As much of the request's scope as has been read."""
        if not self._in_head or not self.url:
            return {"client": self.client}
        path = self.url.partition(b"?")[0].decode("latin-1")
        return {"client": self.client, "method": self.parser.get_method().decode(), "path": path}


def _answer(error: ApiError, record: RequestRecord) -> bytes:
    body = error.body()
    headers = {
        **error.headers,
        "content-type": JSON,
        "content-length": str(len(body)),
        "connection": "close",
        **record.headers(),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"".join([STATUS_LINE[error.status], lines.encode("latin-1"), b"\r\n", body])


def _record_of_refused(scope: Scope, error: ApiError) -> RequestRecord:
    """The record of a request whose application may not have been called yet, told that it was refused."""
    state = scope["state"]
    state["refused"] = error.status, error.code
    if "record" in state:
        return record_of(scope)
    record = RequestRecord(request_id(scope["headers"]))
    scope["headers"].insert(0, (b"x-request-id", record.request_id.encode()))
    return record


def _refusing(error: ApiError) -> ASGIApp:
    """An application in the place of the gateway's, for a request that is refused for its head."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        record_of(scope).code = error.code
        await error.response()(scope, receive, send)

    return RequestContext(refuse)


def _has_left(transport: asyncio.Transport) -> bool:
    """Whether the client has closed the connection, even if what it sent before has not been read."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _invalid() -> ApiError:
    return invalid_request("This is not a valid HTTP request.", code=CODE)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        431,
        "invalid_request_error",
        "headers_too_large",
        f"The request's line and headers are larger than {limit} bytes, the most that this gateway accepts.",
    )


def guarded_protocol(max_header_bytes: int, header_timeout_s: float) -> type[GuardedProtocol]:
    """The protocol class with these limits, as uvicorn wants it: a class that it calls itself."""
    limits = {"max_header_bytes": max_header_bytes, "header_timeout_s": header_timeout_s}
    return type("GuardedProtocol", (GuardedProtocol,), limits)
