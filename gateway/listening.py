"""Where the gateway listens: the sockets, and the address that clients are told.

Two ways lead to a gateway. TCP is for everybody, and proves nothing about who answers. The Unix socket in the
data directory is for the commands of the same installation: only a gateway that holds the directory can have
it. A key may therefore be sent through it without a check of who answers.
"""

import errno
import ipaddress
import os
import socket
from pathlib import Path
from types import TracebackType

import httpx

from gateway.config.sections import Config, ServerConfig
from gateway.storage.privacy import open_private

_VARIABLES = {"server": "TORPOR_PORT", "metrics": "TORPOR_METRICS__PORT"}
_BACKLOG = 2048
_WILDCARDS = {"": "127.0.0.1", "0": "127.0.0.1"}


class CannotListen(Exception):
    """An address cannot be listened on; the message is one line that says why and what to do."""


def listen(host: str, port: int, section: str = "server") -> socket.socket:
    """A TCP socket that listens on the address. Raises `CannotListen`.

    Connections wait in its backlog until they are accepted. Before that no other program can take the port.
    """
    listener = _bound(host, port, section)
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, section, error) from None
    return listener


def check_ports(config: Config) -> None:
    """Check that a gateway of this configuration can listen now; raise `CannotListen` if not."""
    _bound(config.server.host, config.server.port, "server").close()
    if config.metrics.enabled:
        _bound(config.metrics.host, config.metrics.port, "metrics").close()


def _bound(host: str, port: int, section: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    # A port whose last connections are in TIME_WAIT can be bound; one that is listened on cannot.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, section, error) from None
    listener.set_inheritable(False)
    return listener


def _cannot_listen(host: str, port: int, section: str, error: OSError) -> CannotListen:
    remedy = f"set [{section}] port, or {_VARIABLES[section]}"
    if error.errno == errno.EADDRINUSE:
        remedy = f"end the program that holds the port, or {remedy} to another one"
    return CannotListen(f"cannot listen on {host}:{port}: {error.strerror}; {remedy}")


def origin_of(server: ServerConfig, port: int | None = None) -> str:
    """Scheme, host and port for a client on this host, such as ``http://127.0.0.1:8080``."""
    host = _WILDCARDS.get(server.host, server.host)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    scheme = "https" if server.tls_certificate else "http"
    bracketed = f"[{host}]" if ":" in host else host
    return f"{scheme}://{bracketed}:{server.port if port is None else port}"


def listen_locally(path: Path) -> socket.socket:
    """A Unix socket at ``path``, mode 0600, in place of what an ended gateway left there. Raises OSError.

    Its folder is the data directory, which the caller holds.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(_short(folder, path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


class LocalTransport(httpx.AsyncHTTPTransport):
    """Sends requests through the Unix socket of the gateway that holds the data directory.

    Raises `gateway.storage.privacy.NotPrivate` if the directory belongs to another user or others may write
    to it: another program could have made the socket.
    """

    def __init__(self, path: Path) -> None:
        self._folder: int | None = open_private(path.parent)
        super().__init__(uds=_short(self._folder, path), trust_env=False)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await super().__aexit__(exc_type, exc_value, traceback)
        self._release()

    async def aclose(self) -> None:
        """Close every connection."""
        await super().aclose()
        self._release()

    def _release(self) -> None:
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


def _short(folder: int, path: Path) -> str:
    """A name of the socket that fits into ``sockaddr_un`` (108 bytes), however long its path is."""
    return f"/proc/self/fd/{folder}/{path.name}"
