"""Webhooks, signed after the Standard Webhooks specification (standardwebhooks.com), version 1.0.0.

Three headers: ``webhook-id`` stays through all attempts, ``webhook-timestamp`` is the attempt's in unix
seconds, and ``webhook-signature`` is ``v1,`` and the base64 of HMAC-SHA256 over ``{id}.{timestamp}.{body}``.
"""

import base64
import hashlib
import hmac
import ipaddress
import socket
import time
from functools import partial

import httpx

from gateway.alerts.addresses import is_public, literal
from gateway.alerts.messages import DeliveryFailed, event_of
from gateway.alerts.threads import BoundedThreads
from tenants.alerts.outbox import Notification

_MAX_URL = 2048
_GONE = 410
_LOOKUPS = 16
_LOOKUPS_OF_ONE = 2
"""Lookups of one organization at once, so names whose servers are silent delay no other organization."""


def webhook_secret(pepper: bytes, alert_id: str) -> bytes:
    """The key of an alert's signatures, 32 bytes. It is derived and never stored."""
    return hmac.digest(pepper, b"torpor.spend_alert.webhook:" + alert_id.encode(), hashlib.sha256)


def shown_secret(secret: bytes) -> str:
    """The secret in the specification's form, which its libraries take."""
    return "whsec_" + base64.b64encode(secret).decode()


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = b".".join([message_id.encode(), str(timestamp).encode(), body])
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def url_fault(text: str, *, private: bool) -> str | None:
    """Why an event cannot be sent there, as far as the URL itself tells: ``must ...``.

    ``private``: whether addresses that are not public are let through.
    """
    if not 0 < len(text) <= _MAX_URL or not text.isascii() or not text.isprintable() or " " in text:
        return f"must be at most {_MAX_URL} printable ASCII characters"
    try:
        url = httpx.URL(text)
        host = url.host.rstrip(".").lower()  # which decodes an international name
    except (httpx.InvalidURL, UnicodeError):
        return "must be a URL"
    port_fits = url.port is None or 0 < url.port < 65536
    if url.scheme not in ("http", "https") or not host or not port_fits:
        return "must be an http:// or https:// URL"
    if url.userinfo or url.fragment:
        return "must have no user, password or fragment"
    if private:
        return None
    address = literal(host)
    if host == "localhost" or host.endswith(".localhost") or (address and not is_public(address)):
        return "must not be a private address"
    return None


class Webhook:
    """Posts events. ``client`` follows no redirect, uses no proxy, and keeps no connection."""

    def __init__(self, client: httpx.AsyncClient, pepper: bytes, *, private: bool) -> None:
        self._client = client
        self._pepper = pepper
        self._private = private
        self._lookups = BoundedThreads("webhook names", most=_LOOKUPS, most_of_one=_LOOKUPS_OF_ONE)

    async def deliver(self, notification: Notification) -> None:
        """Post a notification. Raises `DeliveryFailed` unless the response is a 2xx."""
        url = str(notification.alert.channel.get("url"))
        if fault := url_fault(url, private=self._private):
            raise DeliveryFailed(f"the URL {fault}")
        body, now = event_of(notification), int(time.time())
        secret = webhook_secret(self._pepper, notification.alert.id)
        headers = {
            "content-type": "application/json",
            "user-agent": "torpor",
            "webhook-id": notification.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(secret, notification.id, now, body),
        }
        status = await self._post(notification.alert.organization_id, httpx.URL(url), headers, body)
        if not 200 <= status < 300:
            raise DeliveryFailed(f"the receiver answered {status}", final=status == _GONE)

    async def _post(self, owner: str, url: httpx.URL, headers: dict[str, str], body: bytes) -> int:
        """The status of the answer, whose body is of no interest.

        The connection goes to the very address that was found to be public: a second look at the name
        might get another.
        """
        host = url.raw_host.decode("ascii")
        headers = {**headers, "host": url.netloc.decode("ascii")}
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            address = await self._address(owner, host, port)
            async with self._client.stream(
                "POST",
                url.copy_with(host=address),
                headers=headers,
                content=body,
                extensions={"sni_hostname": host},
            ) as response:
                return response.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DeliveryFailed(f"the receiver could not be reached: {type(error).__name__}") from error

    async def _address(self, owner: str, host: str, port: int) -> str:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            entries = await self._lookups.run(owner, look_up)
        except (OSError, UnicodeError) as error:
            raise DeliveryFailed("the receiver's name could not be resolved") from error
        for entry in entries:
            address = str(entry[4][0])
            if self._private or is_public(ipaddress.ip_address(address.partition("%")[0])):
                return address
        raise DeliveryFailed("the receiver has a private address, which [alerts] does not allow")
