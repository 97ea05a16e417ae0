"""uvicorn's HTTP protocol with the limits that it lacks, refusing in the envelope.

A head larger than ``max_header_bytes`` is a 431, one that takes longer than ``header_timeout_s`` a 408, one
that the parser refuses a 400. Each ends the connection, and so does a trailer of that size. No application
sees such a request: its headers and its line in the log are made here.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.context import RequestRecord, log_request, request_id
from gateway.errors import JSON, ApiError, invalid_request
from gateway.link import JoiningTransport, put_link


class GuardedProtocol(HttpToolsProtocol):
    """One connection. The limits come as class attributes of a subclass made by `guarded_protocol`."""

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
        self._head_bytes = 0
        self._head_began = time.perf_counter()
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusal: ApiError | None = None
        self.on_gone: Callable[[], None] | None = None
        self.gone = False

    @property
    def congested(self) -> bool:
        """As `ClientLink.congested`."""
        return self.flow.write_paused

    def push(self, body: bytes) -> bool:
        """As `ClientLink.push`: what uvicorn's ``send`` would write, without a coroutine."""
        cycle = self.cycle
        if (
            self.flow.write_paused
            or cycle.disconnected
            or not (cycle.response_started and cycle.chunked_encoding)
        ):
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    @property
    def body_here(self) -> bool:
        """As `ClientLink.body_here`; a client that waits for 100 Continue has sent nothing yet."""
        cycle = self.cycle
        return not cycle.more_body and not cycle.waiting_for_100_continue

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, JoiningTransport(transport, self.loop))
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch_head()
        super().connection_lost(exc)
        self.scope = {}  # type: ignore[typeddict-item]  # it leads back to the connection
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._refusal is None and self._head_bytes > self.max_header_bytes:
            self._refusal = _too_large(self.max_header_bytes)
        if self._refusal is not None:
            self._refuse(self._refusal)

    def send_400_response(self, _msg: str) -> None:
        """What uvicorn calls when the parser refuses."""
        self._refuse(
            self._refusal or invalid_request("This is not a valid HTTP request.", code="invalid_http")
        )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        put_link(cast(Scope, self.scope), self)
        self._in_head = True
        self._head_bytes = 0
        self._head_began = time.perf_counter()
        if self._head_timer is None:
            self._watch_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)
        # What comes after the head is a trailer of a chunked body. Nobody reads it, so that it is not kept.

    def on_headers_complete(self) -> None:
        self._unwatch_head()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.max_header_bytes:
            self._refusal = _too_large(self.max_header_bytes)
        self._head_bytes = 0
        if self._refusal is None:
            super().on_headers_complete()
            self._in_head = False

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if self._refusal is None:
            super().on_message_complete()

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
        self._refuse(
            ApiError(
                408,
                "invalid_request_error",
                "request_timeout",
                f"The headers did not arrive within {self.header_timeout_s:g} seconds.",
            )
        )

    def _refuse(self, error: ApiError) -> None:
        self._refusal = error
        self._unwatch_head()
        if self.transport.is_closing():
            return
        record = RequestRecord(request_id(self.headers if self._in_head else ()), self._head_began)
        free = self.cycle is None or self.cycle.response_complete
        if free:
            self.transport.write(_answer(error, record))
        self.transport.close()
        if free or self._in_head:  # else it is the end of a request that has a line of its own
            log_request(self._seen(), record, error.status)

    def _seen(self) -> Scope:
        """As much of the request's scope as has been read."""
        if not self._in_head or not self.url:
            return {"client": self.client}
        path = self.url.partition(b"?")[0].decode("latin-1")
        return {"client": self.client, "method": self.parser.get_method().decode(), "path": path}


def _answer(error: ApiError, record: RequestRecord) -> bytes:
    body = error.body()
    headers = {
        "content-type": JSON,
        "content-length": str(len(body)),
        "connection": "close",
        **record.headers(),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"".join([STATUS_LINE[error.status], lines.encode("latin-1"), b"\r\n", body])


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
