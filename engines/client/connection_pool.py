"""A small HTTP/1.1 client for the way to an engine: pooled connections over a Unix socket, TCP or TLS.

Why not httpx, which serves everywhere else: docs/decisions/0012-data-path.md. A request is never sent twice;
a connection is no longer used shortly before the engine's server (uvicorn, five seconds) would close it.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

from engines import unix_socket
from engines.client.connection import Connection
from engines.errors import EngineBroken

_CONNECT_TIMEOUT_S = 10.0
_IDLE_CONNECTIONS = 256
# After the last event of a stream the end of its body is awaited in the background.
_LEAVE_S = 1.0


@dataclass(frozen=True, slots=True)
class PoolTimes:
    """How long connections of a pool may be silent and idle, and how often that is checked, in seconds.

    ``silence_s`` is the time between two pieces of an answer: a long prompt computes in silence.
    """

    silence_s: float = 600.0
    keep_alive_s: float = 3.0
    check_every_s: float = 0.5


class HttpPool:
    """Connections to one server. ``url`` gives the scheme, the authority and what every path begins with.

    ``headers`` go out with every request; names and values are latin-1 without line ends.
    """

    def __init__(
        self, url: str, uds: str | None, headers: Mapping[str, str], times: PoolTimes | None = None
    ) -> None:
        self._times = times or PoolTimes()
        parts = urlsplit(url)
        self._uds, self._host = uds, parts.hostname or "localhost"
        self._tls = ssl.create_default_context() if parts.scheme == "https" and uds is None else None
        self._port = parts.port or (443 if self._tls is not None else 80)
        self._prefix = parts.path.rstrip("/")
        lines = {
            "host": parts.netloc.rpartition("@")[2],
            "accept": "*/*",
            "connection": "keep-alive",
            **headers,
        }
        self._headers = _lines(lines)
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._look: asyncio.TimerHandle | None = None
        self._closed = False

    def exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> "HttpExchange":
        """One request, to be entered as a context."""
        return HttpExchange(self, self._request(method, path, body, headers))

    async def take(self) -> Connection:
        """An idle or a new connection. Raises `EngineBroken`."""
        return self._unused() or await self._connect()

    def give_back(self, connection: Connection) -> None:
        """Keep it for another exchange where it is fit for one, else close it."""
        if connection.reusable and not self._closed and len(self._idle) < _IDLE_CONNECTIONS:
            connection.since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close every connection; what still runs is aborted."""
        self._closed = True
        if self._look is not None:
            self._look.cancel()
        for connection in list(self._open):
            connection.fail("the connection to the engine was closed")

    def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        line = f"{method} {self._prefix}{path} HTTP/1.1\r\n".encode("latin-1")
        length = b"" if body is None else b"content-length: %d\r\n" % len(body)
        return b"".join((line, self._headers, _lines(headers), length, b"\r\n", body or b""))

    def _unused(self) -> Connection | None:
        fresh = asyncio.get_running_loop().time() - self._times.keep_alive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.since > fresh:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        if self._closed:
            raise EngineBroken("the connection to the engine was closed")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                if self._uds is not None:
                    connection = await self._attach(await unix_socket.connect(self._uds))
                else:
                    _, connection = await loop.create_connection(
                        self._make, self._host, self._port, ssl=self._tls
                    )
        except TimeoutError:
            raise EngineBroken(f"no connection to the engine within {_CONNECT_TIMEOUT_S:g} s") from None
        except (OSError, ssl.CertificateError) as error:
            raise EngineBroken(f"no connection to the engine: {type(error).__name__}: {error}") from error
        self._open.add(connection)
        if self._look is None:
            self._look = loop.call_later(self._times.check_every_s, self._look_after)
        return connection

    async def _attach(self, connected: socket.socket) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_unix_connection(self._make, sock=connected)
        except BaseException:
            connected.close()
            raise
        return connection

    def _make(self) -> Connection:
        return Connection(self.give_back, self._forget)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _look_after(self) -> None:
        """Close what is idle, silent or left for too long."""
        now = asyncio.get_running_loop().time()
        idle = set(self._idle)
        for connection in list(self._open):
            quiet_s = now - connection.since
            if connection in idle:
                if quiet_s > self._times.keep_alive_s:
                    self._idle.remove(connection)
                    connection.close()
            elif not connection.paused and quiet_s > (_LEAVE_S if connection.left else self._times.silence_s):
                connection.fail(f"the engine said nothing for {quiet_s:.0f} s")
        self._look = None
        if self._open:
            self._look = asyncio.get_running_loop().call_later(self._times.check_every_s, self._look_after)


class HttpExchange:
    """A connection on which the request was sent and the head of the answer has come, inside the context.

    Left before the answer's end, the connection is closed, which aborts the work in the engine, unless `over`
    was called. Entering raises `EngineBroken`.
    """

    def __init__(self, pool: HttpPool, request: bytes) -> None:
        self._pool, self._request = pool, request
        self._connection: Connection | None = None
        self._over = False

    def over(self) -> None:
        """The end of the answer, which is yet to come, says nothing: it is awaited in the background."""
        self._over = True

    async def __aenter__(self) -> Connection:
        connection = self._connection = await self._pool.take()
        try:
            connection.begin(self._request)
            await connection.head()
        except BaseException:
            connection.close()
            raise
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        if connection is None:
            return
        if kind is None and self._over and not connection.whole:
            connection.leave()
        else:
            self._pool.give_back(connection)


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("latin-1")
