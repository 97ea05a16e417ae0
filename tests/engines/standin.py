"""A stand-in for an engine: stands for a process that takes a while, then answers HTTP on a Unix socket.

It knows nothing of models, nor of OpenAI's wire format (``tests/standin.py``). It is a real server in a real
process tree (a child that ignores SIGTERM, as an engine core might), so what the host does with processes,
sockets and time is real.

    standin.py SOCKET [start_s=0.1] [fail=MESSAGE] [deaf=1]

An adapter is the text in its configuration: its canary is this text, and so is every answer of it. A
configuration may say ``"refuse"`` or ``"crash"``; ``POST /sabotage`` spoils the next loads.
"""

import json
import os
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

# Memory that nothing reads: a test that changes a byte of it changes nothing that this process does.
UNUSED = bytearray(b"memory that nothing reads. " * 2500)


class Attached:
    """The adapters of this engine: ``(text, whether its canary has passed)`` by name."""

    def __init__(self) -> None:
        self.changing = threading.Lock()
        self.loaded: dict[str, tuple[str, bool | None]] = {}
        self.numbers: list[int] = []
        self.running: list[str] = []  # names, one for each request
        self.peak = {"loaded": 0, "running": 0, "loads": 0}
        self.spoiled: list[str] = []  # texts of the next loads

    def load(self, order: "dict[str, Any]") -> tuple[int, object]:
        with self.changing:
            if order["number"] in self.numbers or order["name"] in self.loaded:
                return 500, "a name or a number was used again"
            self.loaded.pop(order["leaver"], None)
            if not os.path.exists(f"{order['folder']}/adapter_model.safetensors"):
                return 422, {"error": "there are no weights"}
            with open(f"{order['folder']}/adapter_config.json") as file:
                text = file.read()
            if "refuse" in text:
                return 422, {"error": "the stand-in refuses it"}
            if "crash" in text:
                os._exit(3)
            text = self.spoiled.pop(0) if self.spoiled else text
            fit = None if order["canary"] is None else order["canary"] == {"text": text}
            self.numbers.append(order["number"])
            self.loaded[order["name"]] = text, fit
            self.peak["loads"] += 1
            self.peak["loaded"] = max(self.peak["loaded"], len(self.loaded))
            return 200, {"ms": 0.0}

    def answer(self, method: str, name: str, what: str) -> tuple[int, object]:
        if not name:
            return 200, {"names": sorted(self.loaded), "ids": self.numbers}
        if name not in self.loaded:
            return 404, {"error": "unknown adapter"}
        text, fit = self.loaded[name]
        if what == "proof" and fit is not None:
            return 200, {"fit": fit, "deviation": 0.0 if fit else 9.0, "share": None, "ms": 1.0}
        if what == "canary":
            return 200, {"text": text}
        if method == "DELETE" and not what:
            while name in self.running:
                time.sleep(0.001)
            with self.changing:
                self.loaded.pop(name, None)
            return 200, None
        return 404, {"error": "unknown path"}

    def generate(self, body: "dict[str, Any]") -> tuple[int, object]:
        name, _, public = body["model"].partition("/")
        text, fit = self.loaded.get(name, ("", None))
        if fit is None:
            return 503, {"error": {"message": "it is no longer there", "code": "adapter_unfit"}}
        with self.changing:
            self.running.append(name)
            self.peak["running"] = max(self.peak["running"], len(set(self.running)))
        time.sleep(body.get("takes_s", 0.0))
        with self.changing:
            self.running.remove(name)
        if not fit:
            return 503, {"error": {"message": "the adapter is not fit", "code": "adapter_unfit"}}
        return 200, {"model": public, "text": text}


class Handler(BaseHTTPRequestHandler):
    """What the host asks; ``GET /number``; ``POST /echo``, ``/stream``, ``/die``, ``/deafen``, ``/hang``."""

    protocol_version = "HTTP/1.1"
    number = 0  # drawn at the start: the same after a restore, another after a new start
    canary: "dict[str, int] | None" = None
    deaf = threading.Event()
    gone = threading.Event()
    adapters = Attached()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def address_string(self) -> str:
        return "unix"

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header(
            "content-type", "application/json" if self.path.startswith(("/torpor/", "/v1/")) else "text/plain"
        )
        self.end_headers()
        self.wfile.write(body)

    def reply(self, result: "tuple[int, object]") -> None:
        self.answer(json.dumps(result[1]).encode(), result[0])

    def attached(self, body: bytes = b"") -> bool:
        """Whether it was a call about adapters."""
        if not self.path.startswith("/torpor/adapters"):
            return False
        name, _, what = self.path.removeprefix("/torpor/adapters").strip("/").partition("/")
        load = self.command == "POST" and not name
        message = (
            self.adapters.load(json.loads(body)) if load else self.adapters.answer(self.command, name, what)
        )
        self.reply(message)
        return True

    def do_DELETE(self) -> None:
        if not self.attached():
            self.answer(b"not found", 404)

    def do_GET(self) -> None:
        if self.attached():
            return
        if self.path == "/health":
            if self.deaf.is_set():
                time.sleep(60)
            self.answer(b"")
        elif self.path == "/torpor/proof":
            if self.canary == {"number": -1}:  # stands for a canary that could not be asked
                os._exit(72)
            if self.canary not in (None, {"number": self.number}):
                os._exit(71)
            self.answer(b'{"deviation": 0.0, "ms": 1.0}')
        elif self.path == "/number":
            self.answer(str(self.number).encode())
        elif self.path == "/peak":
            self.answer(json.dumps(self.adapters.peak).encode())
        elif self.path == "/gone":
            self.answer(b"yes" if self.gone.is_set() else b"no")
        else:
            self.answer(b"not found", 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.attached(body):
            return
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
        elif self.path == "/sabotage":
            self.adapters.spoiled = json.loads(body)
            self.answer(b"")
        elif self.path in ("/torpor/sleep", "/torpor/rehearse"):
            self.adapters.loaded.clear()
            self.answer(b'{"dropped_bytes": 0}')
        elif self.path == "/torpor/canary":
            self.answer(json.dumps({"number": self.number}).encode())
        elif self.path == "/torpor/wake":
            Handler.canary = json.loads(body or b"null")
            self.answer(b"null")
        elif self.path.startswith("/v1/"):
            request = json.loads(body or b"{}")
            self.reply(self.adapters.generate(request) if "/" in request.get("model", "") else (200, {}))
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
