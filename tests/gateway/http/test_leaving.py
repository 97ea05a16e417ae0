"""A client that leaves is noticed at once, whatever it has sent: its engine is free and its entry aborted."""

import gzip
import json
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.raw_http import Call, Connection, connected
from tests.process import Gateway, running_gateway

KIB = 1024
FREE_WITHIN_S = 1.0


class HeldEngine:
    """A stand-in for a `url` engine that works without end: it answers nothing, or streams for ever.

    It remembers when each connection with a request was closed by the gateway.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._taken = 0
        self._freed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def wait(self, *, taken: int | None = None, freed: int | None = None, timeout_s: float = 10) -> bool:
        """Whether so many requests have been taken, or freed, in that time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: (taken is None or self._taken >= taken) and (freed is None or self._freed >= freed),
                timeout_s,
            )

    def counts(self) -> tuple[int, int]:
        """Requests taken, and those that the gateway has given up."""
        with self._changed:
            return self._taken, self._freed

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            length = 0
            while line := file.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            body = file.read(length)
            if not body:
                return
            self._count(taken=1)
            try:
                if json.loads(body).get("stream"):
                    self._stream(connection)
                else:
                    file.read(1)
            except OSError:
                pass
            self._count(freed=1)

    def _count(self, taken: int = 0, freed: int = 0) -> None:
        with self._changed:
            self._taken += taken
            self._freed += freed
            self._changed.notify_all()

    @staticmethod
    def _stream(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        event = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "held"}
        choice = {"index": 0, "delta": {"content": " more"}, "finish_reason": None}
        connection.settimeout(0.02)
        while True:
            connection.sendall(b"data: " + json.dumps({**event, "choices": [choice]}).encode() + b"\n\n")
            try:
                if connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue


@pytest.fixture(scope="module")
def engine() -> Iterator[HeldEngine]:
    held = HeldEngine()
    yield held
    held.close()


@pytest.fixture(scope="module")
def gateway(engine: HeldEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    url = f"http://127.0.0.1:{engine.port}"
    models = f"""
[[models]]
id = "held"
url = "{url}"

[[models]]
id = "narrow"
url = "{url}"
max_concurrent = 1
"""
    with running_gateway(tmp_path_factory.mktemp("leaving"), models) as started:
        yield started


def _call(gateway: Gateway, size: int, *, stream: bool = False, model: str = "held") -> Call:
    """A request whose body has exactly so many bytes."""
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": ""}]}
    empty = len(json.dumps(body))
    body["messages"] = [{"role": "user", "content": "x" * max(0, size - empty)}]
    return Call(gateway, "/v1/chat/completions", json.dumps(body).encode())


def _outcomes(gateway: Gateway) -> list[str | None]:
    """The outcomes of the ledger's entries, oldest first, once the journal is in the database."""
    with gateway.http(gateway.admin_key) as http:
        http.get("/v1/organization/usage/completions", params={"start_time": int(time.time())})
    path: Path = gateway.folder / ".torpor/torpor.db"
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT outcome FROM ledger_entries ORDER BY started_ms, id")
        return [outcome for (outcome,) in rows]
    finally:
        database.close()


def _last_is_aborted(gateway: Gateway, entries: int) -> bool:
    """Whether there are so many entries soon, the newest of them aborted."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        outcomes = _outcomes(gateway)
        if len(outcomes) >= entries and None not in outcomes:
            return len(outcomes) == entries and outcomes[-1] == "aborted"
        time.sleep(0.05)
    return False


def _leaves(gateway: Gateway, engine: HeldEngine, request: bytes, *, by_reset: bool = False) -> None:
    """Send the request, leave when the engine works on it, and check what becomes of it."""
    taken, freed = engine.counts()
    entries = len(_outcomes(gateway))
    connection = Connection(gateway.port)
    try:
        connection.send(request)
        assert engine.wait(taken=taken + 1)
        time.sleep(0.05)
        assert engine.counts() == (taken + 1, freed)
        if by_reset:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        connection.close()
    assert engine.wait(freed=freed + 1, timeout_s=FREE_WITHIN_S), "the engine still works"
    assert _last_is_aborted(gateway, entries + 1)


SIZES = [200, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB, 256 * KIB, 400_000, 3_000_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_client_that_leaves_frees_the_engine(
    gateway: Gateway, engine: HeldEngine, size: int, stream: bool, in_chunks: bool
) -> None:
    call = _call(gateway, size, stream=stream)
    assert len(call.body) == size
    _leaves(gateway, engine, call.request(in_chunks=in_chunks))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["reset", "1.0", "upgrade", "gzip", "close", "expect"])
def test_a_client_that_leaves_in_another_way(
    gateway: Gateway, engine: HeldEngine, stream: bool, way: str
) -> None:
    call = _call(gateway, 400_000, stream=stream)
    requests = {
        "1.0": call.request(version="1.0"),
        "upgrade": call.request("Connection: Upgrade", "Upgrade: h2c"),
        "gzip": call.request("Content-Encoding: gzip", body=gzip.compress(call.body, 0)),
        "close": call.request("Connection: close"),
        "expect": call.request("Expect: 100-continue"),
    }
    _leaves(gateway, engine, requests.get(way, call.request()), by_reset=way == "reset")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("behind", [1, 20])
@pytest.mark.parametrize("size", [200, 400_000])
def test_a_client_that_leaves_with_requests_in_the_pipeline(
    gateway: Gateway, engine: HeldEngine, stream: bool, behind: int, size: int
) -> None:
    """More than is read while the first of them runs: none of those behind it is ever given to the engine."""
    requests = _call(gateway, 200, stream=stream).request() + behind * _call(gateway, size).request()
    taken, _ = engine.counts()
    _leaves(gateway, engine, requests[:2_000_000])
    time.sleep(0.2)
    assert engine.counts() == (taken + 1, taken + 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rest", [b"}", b"GET / HTTP/1.1\r\nHost: a", b"\r\n\r\n"])
def test_a_client_that_leaves_with_a_rest_unanswered(
    gateway: Gateway, engine: HeldEngine, stream: bool, rest: bytes
) -> None:
    _leaves(gateway, engine, _call(gateway, 100_000, stream=stream).request() + rest)
    second = _call(gateway, 300).request()
    _leaves(gateway, engine, _call(gateway, 300, stream=stream).request() + second + rest)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [200, 400_000])
def test_a_client_that_leaves_while_its_request_is_queued(
    gateway: Gateway, engine: HeldEngine, stream: bool, size: int
) -> None:
    taken, freed = engine.counts()
    entries = len(_outcomes(gateway))
    with connected(gateway) as first:
        first.send(_call(gateway, 200, model="narrow").request())
        assert engine.wait(taken=taken + 1)
        second = Connection(gateway.port)
        second.send(_call(gateway, size, stream=stream, model="narrow").request())
        time.sleep(0.7)  # a stream has been opened by now
        second.close()
        deadline = time.monotonic() + FREE_WITHIN_S
        while "aborted" not in _outcomes(gateway)[entries:] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sorted(_outcomes(gateway)[entries:], key=str) == [None, "aborted"]
        assert engine.counts() == (taken + 1, freed)
    assert engine.wait(freed=freed + 1, timeout_s=FREE_WITHIN_S)
    assert _last_is_aborted(gateway, entries + 2)
