"""A stand-in for an engine: stands for a process that takes a while, then answers HTTP on a Unix socket.

It knows nothing of models. It is a real server in a real process tree (a child that ignores SIGTERM, as an
engine core might), so what the host does with processes, sockets and time is real.

    standin.py SOCKET [start_s=0.1] [fail=MESSAGE] [deaf=1]
"""

import json
import os
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler


class Handler(BaseHTTPRequestHandler):
    """What the host asks; ``GET /number``; ``POST /echo``, ``/stream``, ``/die``, ``/deafen``, ``/hang``."""

    protocol_version = "HTTP/1.1"
    number = 0  # drawn at the start: the same after a restore, another after a new start
    wanted: "dict[str, int] | None" = None
    deaf = threading.Event()
    gone = threading.Event()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def address_string(self) -> str:
        return "unix"

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json" if "/torpor/" in self.path else "text/plain")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            if self.deaf.is_set():
                time.sleep(60)
            self.answer(b"")
        elif self.path == "/torpor/proof":
            if self.wanted == {"number": -1}:  # stands for a canary that could not be asked
                os._exit(72)
            if self.wanted not in (None, {"number": self.number}):
                os._exit(71)
            self.answer(b'{"deviation": 0.0, "ms": 1.0}')
        elif self.path == "/number":
            self.answer(str(self.number).encode())
        elif self.path == "/gone":
            self.answer(b"yes" if self.gone.is_set() else b"no")
        else:
            self.answer(b"not found", 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.path == "/echo":
            self.answer(str(self.headers).encode() + b"\n" + body)
        elif self.path == "/die":
            print("ERROR fatal: the stand-in was told to die", flush=True)
            os._exit(3)
        elif self.path == "/deafen":
            self.deaf.set()
            self.answer(b"")
        elif self.path == "/hang":
            time.sleep(60)
        elif self.path == "/stream":
            self.stream()
        elif self.path == "/torpor/sleep":
            self.answer(b'{"dropped_bytes": 0}')
        elif self.path == "/torpor/canary":
            self.answer(json.dumps({"number": self.number}).encode())
        elif self.path == "/torpor/wake":
            Handler.wanted = json.loads(body or b"null")
            self.answer(b"null")
        elif self.path.startswith("/v1/"):
            self.answer(b"{}")
        else:
            self.answer(b'"unknown"', 404)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for number in range(1000):
                event = b"data: %d\n\n" % number
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                time.sleep(0.02)
        except OSError:
            self.gone.set()
            self.close_connection = True


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One thread for each connection."""

    daemon_threads = True
    request_queue_size = 256


def main() -> None:
    """Take a while, then serve until SIGTERM."""
    options = dict(word.split("=", 1) for word in sys.argv[2:])
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    print("INFO the stand-in starts", flush=True)
    Handler.number = int.from_bytes(os.urandom(6), "big")
    time.sleep(float(options.get("start_s", "0.1")))
    if "fail" in options:
        print(f"ValueError: {options['fail']}", file=sys.stderr, flush=True)
        sys.exit(1)
    if "deaf" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Server(sys.argv[1], Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
