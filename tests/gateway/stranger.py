"""A program that is not Torpor, on a port that clients take for a gateway's."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 62\r\n\r\n"
    b'{"object": "list", "data": [], "choices": [], "answer": "hello"}'[:62].ljust(62)
)


class Stranger:
    """Takes whatever is sent to it, and answers 200, or never if it is ``silent``."""

    def __init__(self, listener: socket.socket, *, silent: bool) -> None:
        self.port: int = listener.getsockname()[1]
        self.heard = b""
        self.connections = 0
        self._listener, self._silent = listener, silent
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._held.append(connection)
            if self._silent:
                continue
            connection.settimeout(1.0)
            with suppress(OSError):
                while received := connection.recv(65536):
                    self.heard += received
                    if b"\r\n\r\n" in received:
                        connection.sendall(_ANSWER)

    def end(self) -> None:
        """Close everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._held:
            connection.close()


@contextmanager
def stranger_at(host: str = "127.0.0.1", port: int = 0, *, silent: bool = False) -> Iterator[Stranger]:
    """A stranger that listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
        stranger = Stranger(listener, silent=silent)
        try:
            yield stranger
        finally:
            stranger.end()
