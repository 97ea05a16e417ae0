"""Where an issuer's keys come from, and how long they are believed.

A source that can change is read when a token needs it, by one reader at a time: again after its time to
live, and early, but not often, when a token names a key that is not there. While it cannot be read, what was
read last is believed for a bounded time.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
import msgspec

from tenants.errors import IssuerUnavailable
from tenants.tokens.keys import InvalidKeys, KeySet, from_jwks

_logger = logging.getLogger("torpor.tenants")

FETCH_TIMEOUT_S = 5.0
MAX_DOCUMENT_BYTES = 256 * 1024
_DISCOVERY = "/.well-known/openid-configuration"


class SourceFailed(Exception):
    """The keys could not be read; the message is for the log."""


class KeySource(Protocol):
    """The keys of one issuer."""

    async def current(self) -> KeySet:
        """What is believed now; raises `IssuerUnavailable` where there is nothing."""

    async def newer(self, than: KeySet) -> KeySet:
        """As `current`, but read again if allowed, because a token names a key that is not in ``than``.

        Raises `IssuerUnavailable` where the newest attempt to read has failed.
        """

    @property
    def lifetime_s(self) -> float:
        """For how long a token that these keys have verified needs no other look at them."""


@dataclass(frozen=True, slots=True)
class FixedKeys:
    """Keys that change only with the configuration."""

    keys: KeySet
    lifetime_s: float = 3600.0

    async def current(self) -> KeySet:
        """As `KeySource.current`."""
        return self.keys

    async def newer(self, than: KeySet) -> KeySet:
        """As `KeySource.newer`: there are no others."""
        return than


@dataclass(slots=True, kw_only=True)
class ReadKeys:
    """Keys that ``read`` reads. Times are in seconds.

    ``lifetime_s``: how long the keys are used without reading them again; then they are read in the
    background. ``stale_s``: for how much longer it is used while it cannot be read. ``pause_s``: the
    shortest time between two attempts.
    """

    name: str
    read: Callable[[], Awaitable[KeySet]]
    lifetime_s: float = 600.0
    stale_s: float = 3600.0
    pause_s: float = 30.0
    clock: Callable[[], float] = time.monotonic
    _keys: KeySet | None = None
    _read_at: float = 0.0
    _tried_at: float | None = None
    _failed: bool = False
    _reading: asyncio.Task[None] | None = field(default=None, repr=False)

    async def current(self) -> KeySet:
        """As `KeySource.current`."""
        age = self.clock() - self._read_at
        if self._keys is not None and age < self.lifetime_s:
            return self._keys
        reading = self._begin()
        if self._keys is not None and age < self.lifetime_s + self.stale_s:
            return self._keys
        if reading is not None:
            await asyncio.shield(reading)
        if self._keys is None or self.clock() - self._read_at >= self.lifetime_s + self.stale_s:
            raise IssuerUnavailable(f"the keys of {self.name} cannot be read")
        return self._keys

    async def newer(self, than: KeySet) -> KeySet:
        """As `KeySource.newer`."""
        if self._keys is than:
            reading = self._begin()
            if reading is not None:
                await asyncio.shield(reading)
        if self._failed or self._keys is None:
            raise IssuerUnavailable(f"the keys of {self.name} cannot be read")
        return self._keys

    def _begin(self) -> asyncio.Task[None] | None:
        """The attempt that goes on, a new one where the last is long enough ago, or None."""
        if self._reading is not None and not self._reading.done():
            return self._reading
        now = self.clock()
        if self._tried_at is not None and now - self._tried_at < self.pause_s:
            return None
        self._tried_at = now
        self._reading = asyncio.create_task(self._attempt(), name=f"keys of {self.name}")
        return self._reading

    async def _attempt(self) -> None:
        try:
            self._keys = await self.read()
        except (SourceFailed, InvalidKeys) as error:
            self._failed = True
            _logger.warning("the keys of %s cannot be read: %s", self.name, error)
        else:
            self._failed = False
            self._read_at = self.clock()


async def read_file(path: Path) -> KeySet:
    """The keys of a JWKS file, symmetric ones included. Raises `SourceFailed` and `InvalidKeys`."""
    try:
        text = await asyncio.to_thread(path.read_bytes)
    except OSError as error:
        raise SourceFailed(str(error)) from error
    return from_jwks(text, secrets=True)


async def read_url(client: httpx.AsyncClient, url: str) -> KeySet:
    """The keys of a JWKS that everybody can read. Raises `SourceFailed` and `InvalidKeys`."""
    return from_jwks(await _fetch(client, url))


async def discover(client: httpx.AsyncClient, issuer: str) -> KeySet:
    """The keys of an OpenID provider, found through its discovery document (OpenID Connect Discovery 1.0).

    Raises `SourceFailed`, also where the document is that of another issuer, and `InvalidKeys`.
    """
    try:
        document: Any = msgspec.json.decode(await _fetch(client, issuer.rstrip("/") + _DISCOVERY))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceFailed("the discovery document is not valid JSON") from error
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise SourceFailed("the discovery document is that of another issuer")
    url = document.get("jwks_uri")
    if not isinstance(url, str) or not is_safe_url(url):
        raise SourceFailed("the discovery document has no jwks_uri with https")
    return await read_url(client, url)


def is_safe_url(url: str) -> bool:
    """Whether no third party can change what is read: https, or a loopback address."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.username is not None:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in ("localhost", "127.0.0.1", "::1"))


def key_client() -> httpx.AsyncClient:
    """The client that keys are fetched with: it follows no redirect."""
    return httpx.AsyncClient(
        follow_redirects=False,
        timeout=FETCH_TIMEOUT_S,
        headers={"accept": "application/json", "user-agent": "torpor"},
    )


async def _fetch(client: httpx.AsyncClient, url: str) -> bytes:
    """The document, bounded in size and time whatever the server does. Raises `SourceFailed`."""
    body = bytearray()
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S), client.stream("GET", url) as answer:
            if answer.status_code != 200:
                raise SourceFailed(f"{url} answered {answer.status_code}")
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise SourceFailed(f"{url} is larger than {MAX_DOCUMENT_BYTES} bytes")
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise SourceFailed(f"{url}: {type(error).__name__} {error}") from error
    return bytes(body)
