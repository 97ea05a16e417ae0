"""Talking HTTP/1.1 to one engine."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from engines.client.connection import Connection
from engines.client.connection_pool import HttpExchange, HttpPool
from engines.errors import EngineBroken
from engines.spec import EngineAddress
from engines.wire import SEQUENCES_HEADER

# The question waits for its turn in the engine, behind a long step if need be; the caller has its own limit.
_COUNTS_TIMEOUT_S = 60.0
_COUNTS_WAIT_S = 30.0
_COUNTS_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class EngineReply:
    """A whole answer. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """Tokens of one attempt over all its prompts and choices, as counted inside the engine.

    ``finished``: nothing of the attempt is still running, so the counts are final.
    """

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    finished: bool


class EngineStream:
    """An answer whose body arrives in pieces. Header names are lower case."""

    def __init__(self, exchange: HttpExchange, answer: Connection) -> None:
        self._exchange, self._answer = exchange, answer
        self.status = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self.content_type = answer.headers.get("content-type", "")

    async def pour(self, sink: Callable[[bytes], bool]) -> bool:
        """Give the body to ``sink`` as it arrives, while that returns True.

        Returns False at the body's end. Raises `EngineBroken`; the sink may raise nothing else.
        """
        return await self._answer.pour(sink)

    async def read(self) -> bytes:
        """The whole body (what is left of it). Raises `EngineBroken`."""
        return await _whole(self._answer)

    def over(self) -> None:
        """Nothing that matters can follow: leaving does not close the connection, which may serve again."""
        self._exchange.over()


class EngineClient:
    """Talks to one engine over its Unix socket or URL: pooled connections, no environment proxies.

    No header of a gateway's client is ever forwarded. Every failure of the connection is `EngineBroken`.
    """

    def __init__(self, address: EngineAddress) -> None:
        self.address = address
        url = (address.url or "http://engine").rstrip("/").removesuffix("/v1")
        headers = {"user-agent": "torpor", "accept-encoding": "identity"}
        if address.api_key is not None:
            headers["authorization"] = f"Bearer {address.api_key}"
        self._http = HttpPool(url, address.uds, headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        attempt_id: str | None = None,
        timeout_s: float,
    ) -> EngineReply:
        """One call with a whole answer. Raises `EngineBroken`, also after ``timeout_s``.

        Cancelling it closes the connection, which aborts the work in the engine.
        """
        headers = _headers(body, attempt_id)
        try:
            async with asyncio.timeout(timeout_s), self._http.exchange(method, path, body, headers) as answer:
                return EngineReply(answer.status, answer.headers, await _whole(answer))
        except TimeoutError as error:
            raise EngineBroken(f"the engine did not answer within {timeout_s:g} s") from error

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, *, attempt_id: str, sequences: int | None = None
    ) -> AsyncIterator[EngineStream]:
        """POST ``body`` and read the answer as it comes, without a limit on the whole time.

        ``sequences``: how many of the call's sequences Torpor's engine computes at a time; None for all.

        Leaving the context before the body's end closes the connection, which aborts the work in the engine.
        """
        headers = _headers(body, attempt_id)
        if sequences is not None:
            headers[SEQUENCES_HEADER] = str(sequences)
        exchange = self._http.exchange("POST", path, body, headers)
        async with exchange as answer:
            yield EngineStream(exchange, answer)

    async def counts(self, attempt_id: str) -> EngineCounts | None:
        """Ask the engine what it has counted for the attempt.

        Waits, up to half a minute, until an abandoned attempt has ended in the engine. None when the engine
        does not know the attempt, is not Torpor's, or no longer answers.
        """
        if self.address.uds is None:
            return None
        path = f"/torpor/requests/{quote(attempt_id, safe='')}"
        deadline = asyncio.get_running_loop().time() + _COUNTS_WAIT_S
        while True:
            try:
                reply = await self.request("GET", path, timeout_s=_COUNTS_TIMEOUT_S)
            except EngineBroken:
                return None
            if reply.status != 200:
                return None
            counts = EngineCounts(**json.loads(reply.body))
            if counts.finished or asyncio.get_running_loop().time() >= deadline:
                return counts
            await asyncio.sleep(_COUNTS_POLL_S)


class EngineClients:
    """One `EngineClient` for each address. Clients of engines that are gone are closed on the way."""

    def __init__(self) -> None:
        self._clients: dict[EngineAddress, EngineClient] = {}

    def get(self, address: EngineAddress) -> EngineClient:
        """The client for this address, made when there is none. Call it in a running event loop."""
        client = self._clients.get(address)
        if client is None:
            self._drop_dead()
            client = self._clients[address] = EngineClient(address)
        return client

    def _drop_dead(self) -> None:
        """An engine's socket goes with the engine, and a new engine has a new one."""
        for address in [a for a in self._clients if a.uds is not None and not Path(a.uds).exists()]:
            self._clients.pop(address).close()

    def close(self) -> None:
        """Close them all."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()


def _headers(body: bytes | None, attempt_id: str | None) -> dict[str, str]:
    headers = {}
    if body is not None:
        headers["content-type"] = "application/json"
    if attempt_id is not None:
        headers["x-request-id"] = attempt_id
    return headers


async def _whole(answer: Connection) -> bytes:
    pieces = []
    while piece := await answer.read():
        pieces.append(piece)
    return b"".join(pieces)
