"""Talking HTTP/1.1 to one engine."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx

from engines.errors import EngineBroken
from engines.spec import EngineAddress

_CONNECT_TIMEOUT_S = 10.0
# Between two chunks of a stream; a long prompt computes in silence.
_READ_TIMEOUT_S = 600.0
# Shorter than the 5 s after which uvicorn closes an idle connection, so that none is used as it closes.
_KEEP_ALIVE_S = 3.0
_IDLE_CONNECTIONS = 64
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

    ``finished``: nothing of the attempt runs any more, so the counts are final.
    """

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    finished: bool


class EngineStream:
    """An answer whose body arrives in pieces."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.content_type = response.headers.get("content-type", "")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body's bytes as they arrive. Raises `EngineBroken` when it breaks off."""
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx.HTTPError as error:
            raise _broken(error) from error

    async def read(self) -> bytes:
        """The whole body (what is left of it)."""
        return b"".join([chunk async for chunk in self.chunks()])


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
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S, pool=None),
            transport=httpx.AsyncHTTPTransport(
                uds=address.uds,
                # Certificates are read from disk for this: only where they are of use.
                verify=url.startswith("https:"),
                trust_env=False,
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=_IDLE_CONNECTIONS,
                    keepalive_expiry=_KEEP_ALIVE_S,
                ),
            ),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

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
        request = self._http.build_request(method, path, content=body, headers=_headers(body, attempt_id))
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._http.send(request)
        except httpx.HTTPError as error:
            raise _broken(error) from error
        except TimeoutError as error:
            raise EngineBroken(f"the engine did not answer within {timeout_s:g} s") from error
        return EngineReply(response.status_code, response.headers, response.content)

    @asynccontextmanager
    async def stream(self, path: str, body: bytes, *, attempt_id: str) -> AsyncIterator[EngineStream]:
        """POST ``body`` and read the answer as it comes, without a limit on the whole time.

        Leaving the context before the body's end closes the connection, which aborts the work in the engine.
        """
        request = self._http.build_request("POST", path, content=body, headers=_headers(body, attempt_id))
        try:
            response = await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _broken(error) from error
        try:
            yield EngineStream(response)
        finally:
            await response.aclose()

    async def counts(self, attempt_id: str) -> EngineCounts | None:
        """Ask the engine what it has counted for the attempt.

        Waits, up to half a minute, until an abandoned attempt has ended in the engine. None when the engine
        does not know the attempt, is not ours, or cannot be asked any more.
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
        self._closing: set[asyncio.Task[None]] = set()

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
            task = asyncio.create_task(self._clients.pop(address).aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close them all."""
        clients = list(self._clients.values())
        self._clients.clear()
        await asyncio.gather(*(client.aclose() for client in clients), *self._closing)


def _headers(body: bytes | None, attempt_id: str | None) -> dict[str, str]:
    headers = {}
    if body is not None:
        headers["content-type"] = "application/json"
    if attempt_id is not None:
        headers["x-request-id"] = attempt_id
    return headers


def _broken(error: httpx.HTTPError) -> EngineBroken:
    return EngineBroken(f"the connection to the engine failed: {type(error).__name__}: {error}")
