"""The HTTP client on the way to an engine, against servers that say exactly what they are told to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engines.client.connection_pool import HttpPool, PoolTimes
from engines.errors import EngineBroken

Ask = Callable[[HttpPool], Coroutine[Any, Any, tuple[int, bytes]]]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def pool_to(serve: Serve, times: PoolTimes | None = None) -> AsyncIterator[HttpPool]:
    """A pool, and a server that gives each connection to ``serve`` and closes it afterwards."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = HttpPool(f"http://127.0.0.1:{port}", None, {}, times)
    async with server:
        try:
            yield pool
        finally:
            pool.close()


class Script:
    """Says the same for each request; remembers on which connection each came."""

    def __init__(self, *said: bytes | float, close: bool = False) -> None:
        self.said, self.close = said, close
        self.connections = 0
        self.requests: list[int] = []
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.requests.append(number)
                for said in self.said:
                    if isinstance(said, float):
                        await asyncio.sleep(said)
                    else:
                        writer.write(said)
                        await writer.drain()
                if self.close:
                    return
        finally:
            self.ended.set()


async def ask(pool: HttpPool) -> tuple[int, bytes]:
    pieces = []
    async with pool.exchange("POST", "/x", b"{}", {}) as answer:
        while piece := await answer.read():
            pieces.append(piece)
        return answer.status, b"".join(pieces)


def into(pieces: list[bytes], most: int = 1000) -> Callable[[bytes], bool]:
    """A sink that keeps what it gets, until it has so many pieces."""

    def sink(piece: bytes) -> bool:
        pieces.append(piece)
        return len(pieces) < most

    return sink


async def ask_pouring(pool: HttpPool) -> tuple[int, bytes]:
    pieces: list[bytes] = []
    async with pool.exchange("POST", "/x", b"{}", {}) as answer:
        assert not await answer.pour(into(pieces))
        assert all(pieces)
        return answer.status, b"".join(pieces)


either_way = pytest.mark.parametrize("ask", [ask, ask_pouring])


@either_way
@pytest.mark.parametrize(
    ("said", "body", "connections"),
    [
        ([OK + b"content-length: 2\r\n\r\nok"], b"ok", 1),
        ([OK + b"Content-Length: 2\r\n\r\n", 0.01, b"o", 0.01, b"k"], b"ok", 1),
        ([CHUNKED + b"2\r\nok\r\n3\r\nmor\r\n0\r\n\r\n"], b"okmor", 1),
        ([CHUNKED, b"2\r", 0.01, b"\nok\r\n0\r\n", 0.01, b"trailer: 1\r\n\r\n"], b"ok", 1),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", 0.01, OK + b"content-length: 2\r\n\r\nok"], b"ok", 1),
        ([b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK + b"content-length: 0\r\n\r\n"], b"", 1),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], b"", 1),
        ([OK + b"content-length: 2\r\nconnection: close\r\n\r\nok"], b"ok", 3),
        ([b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"], b"ok", 3),
    ],
)
async def test_answers_are_read_whole_and_connections_used_again(
    ask: Ask, said: list[bytes | float], body: bytes, connections: int
) -> None:
    script = Script(*said)
    async with pool_to(script) as pool:
        for _ in range(3):
            status, got = await ask(pool)
            assert (status in (200, 204), got) == (True, body)
            await asyncio.sleep(0)
    assert script.connections == connections


@either_way
async def test_a_body_without_a_length_ends_with_the_connection(ask: Ask) -> None:
    script = Script(OK + b"\r\n", b"all of ", 0.01, b"it", close=True)
    async with pool_to(script) as pool:
        assert await ask(pool) == (200, b"all of it")
        assert await ask(pool) == (200, b"all of it")
    assert script.connections == 2


@either_way
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], "closed the connection"),
        ([b"HTTP/1.1 200"], "closed the connection"),
        ([OK + b"content-length: 5\r\n\r\nok"], "closed the connection"),
        ([CHUNKED + b"2\r\nok\r\n"], "closed the connection"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "not HTTP/1.1"),
        ([CHUNKED + b"zz\r\nok\r\n"], "not HTTP/1.1"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"], "not HTTP/1.1"),
        ([OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok"], "not HTTP/1.1"),
        ([OK + b"x: " + b"y" * 70_000 + b"\r\n", 0.05], "larger than"),
    ],
)
async def test_what_is_no_answer_breaks_the_exchange(
    ask: Ask, said: list[bytes | float], reason: str
) -> None:
    script = Script(*said, close=True)
    async with pool_to(script) as pool:
        for _ in range(2):
            with pytest.raises(EngineBroken, match=reason):
                await ask(pool)
    assert script.connections == 2


async def test_what_came_before_a_break_is_read_first() -> None:
    script = Script(CHUNKED + b"2\r\nok\r\n", 0.01, close=True)
    async with pool_to(script) as pool, pool.exchange("POST", "/x", b"", {}) as answer:
        assert await answer.read() == b"ok"
        with pytest.raises(EngineBroken):
            await answer.read()


async def test_what_came_before_a_break_is_poured_first() -> None:
    script = Script(CHUNKED + b"2\r\nok\r\n", 0.01, close=True)
    got: list[bytes] = []
    async with pool_to(script) as pool, pool.exchange("POST", "/x", b"", {}) as answer:
        with pytest.raises(EngineBroken):
            await answer.pour(into(got))
    assert got == [b"ok"]


async def test_a_sink_that_wants_no_more_gets_nothing_before_it_asks_again() -> None:
    """Every piece reaches it once, in order, whether it came while it was asked for or not."""
    pieces = [b"%03d" % number for number in range(200)]
    said = [CHUNKED, *(part for piece in pieces for part in (b"3\r\n%b\r\n" % piece, 0.001)), b"0\r\n\r\n"]
    got = bytearray()
    request = 0
    expected = False

    def sink(piece: bytes) -> bool:
        assert expected
        got.extend(piece)
        return bool(piece[-1] % 3)

    async with pool_to(Script(*said)) as pool, pool.exchange("POST", "/x", b"", {}) as answer:
        going_on = True
        while going_on:
            expected = True
            going_on = await answer.pour(sink)
            expected = False
            request += 1
            await asyncio.sleep(0.001 * (request % 3))
    assert bytes(got) == b"".join(pieces)
    assert request > 3


@pytest.mark.parametrize("pause_s", [0.0, 0.02])
async def test_what_a_sink_raises_is_raised_to_who_gave_it(pause_s: float) -> None:
    def sink(_: bytes) -> bool:
        raise EngineBroken("the sink found it out")

    script = Script(CHUNKED, pause_s, b"2\r\nok\r\n0\r\n\r\n")
    async with pool_to(script) as pool, pool.exchange("POST", "/x", b"", {}) as answer:
        await asyncio.sleep(0.01)
        with pytest.raises(EngineBroken, match="found it out"):
            await answer.pour(sink)


async def test_a_sink_whose_owner_was_cancelled_is_given_nothing() -> None:
    got: list[bytes] = []
    script = Script(CHUNKED, b"2\r\nok\r\n", 0.05, b"2\r\nno\r\n0\r\n\r\n")
    async with pool_to(script) as pool, pool.exchange("POST", "/x", b"", {}) as answer:
        pouring = asyncio.create_task(answer.pour(into(got)))
        await asyncio.sleep(0.02)
        pouring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pouring
        await asyncio.sleep(0.1)
        assert got == [b"ok"]
        assert await answer.read() == b"no"


@pytest.mark.parametrize(
    "surplus",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 500 Oh\r\nx: y\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"junk",
    ],
)
async def test_bytes_that_nobody_asked_for_never_answer_the_next_request(surplus: bytes) -> None:
    script = Script(OK + b"content-length: 2\r\n\r\nok" + surplus)
    async with pool_to(script) as pool:
        for _ in range(3):
            with contextlib.suppress(EngineBroken):
                assert await ask(pool) == (200, b"ok")
            await asyncio.sleep(0.01)
    assert script.connections == 3


async def test_late_surplus_closes_an_idle_connection() -> None:
    script = Script(OK + b"content-length: 2\r\n\r\nok", 0.02, OK + b"content-length: 2\r\n\r\nno")
    async with pool_to(script) as pool:
        for _ in range(3):
            assert await ask(pool) == (200, b"ok")
            await asyncio.sleep(0.06)
    assert script.connections == 3


async def test_leaving_early_closes_the_connection_at_once() -> None:
    hung_up = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"2\r\nok\r\n")
        await reader.read()
        hung_up.set()

    async with pool_to(serve) as pool:
        async with pool.exchange("POST", "/x", None, {}) as answer:
            assert await answer.read() == b"ok"
        await asyncio.wait_for(hung_up.wait(), 1)


@either_way
@pytest.mark.parametrize("said", [b"", CHUNKED, CHUNKED + b"2\r\nok\r\n"])
async def test_cancelling_closes_the_connection_at_once(ask: Ask, said: bytes) -> None:
    hung_up = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await reader.read()
        hung_up.set()

    async with pool_to(serve) as pool:
        task = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(hung_up.wait(), 1)


async def test_a_stream_that_is_over_keeps_its_connection_though_its_last_bytes_come_later() -> None:
    script = Script(CHUNKED + b"2\r\nok\r\n", 0.05, b"0\r\n\r\n")
    async with pool_to(script) as pool:
        for _ in range(3):
            exchange = pool.exchange("POST", "/x", None, {})
            async with exchange as answer:
                assert await answer.read() == b"ok"
                exchange.over()
            await asyncio.sleep(0.1)
    assert script.connections == 1


async def test_a_stream_that_goes_on_after_it_was_over_loses_its_connection() -> None:
    script = Script(CHUNKED + b"2\r\nok\r\n", 0.02, b"3\r\nend\r\n0\r\n\r\n")
    async with pool_to(script) as pool:
        for _ in range(2):
            exchange = pool.exchange("POST", "/x", None, {})
            async with exchange as answer:
                assert await answer.read() == b"ok"
                exchange.over()
            await asyncio.sleep(0.06)
    assert script.connections == 2


@either_way
async def test_silence_ends_an_exchange_and_idle_connections_are_closed(
    ask: Ask,
) -> None:
    times = PoolTimes(silence_s=0.05, keep_alive_s=0.05, check_every_s=0.02)
    script = Script(30.0)
    async with pool_to(script, times) as pool:
        with pytest.raises(EngineBroken, match="said nothing"):
            await ask(pool)
    idle = Script(OK + b"content-length: 2\r\n\r\nok")
    async with pool_to(idle, times) as pool:
        assert await ask(pool) == (200, b"ok")
        await asyncio.wait_for(idle.ended.wait(), 1)


async def test_a_slow_reader_stops_the_engine() -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"content-length: 67108864\r\n\r\n")
        for _ in range(1024):
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with pool_to(serve) as pool, pool.exchange("GET", "/x", None, {}) as answer:
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 32 * 1024 * 1024
        got = 0
        while piece := await answer.read():
            got += len(piece)
        assert got == 67108864


async def test_a_large_body_goes_out_whole() -> None:
    body = bytes(range(256)) * 65536

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"content-length: %d\r\n" % len(body) in head
        got = await reader.readexactly(len(body))
        writer.write(OK + b"content-length: 5\r\n\r\n" + (b"equal" if got == body else b"other"))
        await writer.drain()

    async with pool_to(serve) as pool, pool.exchange("POST", "/x", body, {}) as answer:
        assert await answer.read() == b"equal"


async def test_closing_the_pool_breaks_what_runs() -> None:
    async with pool_to(Script(30.0)) as pool:
        task = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.05)
        pool.close()
        with pytest.raises(EngineBroken, match="was closed"):
            await task
        with pytest.raises(EngineBroken, match="was closed"):
            await ask(pool)


async def test_nobody_there() -> None:
    with pytest.raises(EngineBroken, match="no connection"):
        await ask(HttpPool("http://127.0.0.1:1", None, {}))
    with pytest.raises(EngineBroken, match="no connection"):
        await ask(HttpPool("http://engine", "/nonexistent/socket", {}))
