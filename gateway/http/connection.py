"""What a connection tells an exchange beyond ASGI, where the server is the gateway's own.

ASGI reports a client that has left only to a task that waits in ``receive``, which takes a task for each
request, and does not say whether a ``send`` may have to wait.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from starlette.types import Scope

_NAME = "torpor.link"
_HEAD = b"HTTP/1.1 "
_LINGER_S = 2.0
"""How long a client that is still sending may do so after its answer."""


class ClientConnection(Protocol):
    """The connection that a request came on. ``on_gone`` is called once, when it is lost."""

    on_gone: Callable[[], None] | None

    @property
    def gone(self) -> bool:
        """Whether it is lost."""

    @property
    def congested(self) -> bool:
        """Whether the client reads more slowly than it is sent to: the next ``send`` waits."""

    def push(self, body: bytes) -> bool:
        """Send more of an answer whose beginning was sent, within this turn of the loop.

        Returns whether it could: where the client is slow, gone or speaks HTTP/1.0 it is ``send``'s to do.
        """

    @property
    def body_complete(self) -> bool:
        """Whether all of the request has arrived: ``receive`` does not wait."""


class HeadCoalescingTransport:
    """A transport that sends an answer's head with the first of its body, and closes gently.

    uvicorn writes the head and then the body. A client that is still sending when the connection is closed
    might not see its answer: where ``stop_reading`` says so, `close` ends the sending alone, and the
    connection is closed when the client has closed it too, or after a while (RFC 9112, section 9.6). What is
    not named here is the transport's own.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, stop_reading: Callable[[], bool]
    ) -> None:
        self._transport, self._loop, self._stop_reading = transport, loop, stop_reading
        self._head = b""
        self._lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it, a head not later than at the end of this turn of the loop."""
        if self._lingering:
            return
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(_HEAD):
            self._head = data
            self._loop.call_soon(self.flush)
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Send the head alone."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close the connection once everything has been sent."""
        self.flush()
        if self.is_closing():
            return
        if not self._stop_reading():
            self._transport.close()
            return
        self._lingering = True
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(_LINGER_S, self._transport.close)


def put_connection(scope: Scope, link: ClientConnection) -> None:
    """For `connection_of`, in the request's scope."""
    scope["extensions"] = {_NAME: link}


def connection_of(scope: Scope) -> ClientConnection | None:
    """The connection of a request, where its server has told."""
    link: ClientConnection | None = scope.get("extensions", {}).get(_NAME)
    return link
