"""The load generators: what they count, when they send, and what they make of a server that misbehaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from loadtest.client import Ask, Endpoint, Outcome, Tally
from loadtest.gateway import MODEL, Running
from loadtest.generator import arrivals, chat, chat_body, closed_loop, connect, open_loop
from loadtest.many import disconnect, hold_open
from loadtest.targets import Engine

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[Endpoint]:
    """Answers each request as it is told to."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                await answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield Endpoint(port=listening.sockets[0].getsockname()[1])


def _endpoint(engine: Engine) -> Endpoint:
    return Endpoint(port=engine.port)


async def _one(endpoint: Endpoint, ask: Ask) -> tuple[Outcome, Tally]:
    tally, done = Tally(), asyncio.get_running_loop().create_future()
    (connection,) = await connect(endpoint, 1)
    connection.ask(ask, lambda _connection, outcome: done.set_result(outcome), tally)
    outcome: Outcome = await done
    connection.close()
    return outcome, tally


@pytest.mark.parametrize("uds", [False, True])
async def test_a_closed_loop_gets_every_token(engine: Engine, *, uds: bool) -> None:
    endpoint = Endpoint(uds=str(engine.uds)) if uds else _endpoint(engine)
    ask = chat(endpoint, MODEL, tokens=5, stream=True, pace_ms=1, stamped=True)
    run = await closed_loop(endpoint, lambda: ask, connections=3, seconds=60, requests=30)
    assert (run.tally.good, run.tally.failed, run.in_time) == (30, 0, 30)
    assert run.tally.tokens == run.tally.delay.count == 150
    assert run.tally.itl.count == 120
    assert run.tally.ttft.percentile(99) <= run.tally.total.percentile(99)
    assert 0 < run.tally.delay.percentile(50) < 50e6


async def test_a_closed_loop_ends_with_its_time(engine: Engine) -> None:
    endpoint = _endpoint(engine)
    ask = chat(endpoint, MODEL, tokens=2)
    run = await closed_loop(endpoint, lambda: ask, connections=2, seconds=0.2)
    assert run.seconds == pytest.approx(0.2, abs=0.05)
    assert run.in_time <= run.tally.good <= run.in_time + 2
    assert run.per_second == run.in_time / run.seconds


async def test_an_answer_that_ends_after_the_time_is_counted_and_not_in_it(engine: Engine) -> None:
    endpoint = _endpoint(engine)
    ask = chat(endpoint, MODEL, tokens=3, stream=True, pace_ms=150)
    run = await closed_loop(endpoint, lambda: ask, connections=4, seconds=0.1)
    assert (run.tally.good, run.in_time, run.per_second) == (4, 0, 0)


def test_arrivals_are_even() -> None:
    assert list(arrivals(5, rate=4, seconds=1.5)) == [5 + index * 250_000_000 for index in range(6)]


async def test_an_open_loop_counts_the_wait_for_a_slow_server() -> None:
    """Ten requests, 10 ms apart, of 50 ms each over one connection: the last waits for the others."""

    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(_PLAIN)

    async with server(slow) as endpoint:
        ask = Ask(endpoint.request({}))
        run = await open_loop(endpoint, lambda: ask, rate=100, connections=1, seconds=0.1)
    assert (run.tally.good, run.late) == (10, 9)
    assert run.tally.total.percentile(10) >= 50e6
    assert run.tally.total.largest >= 10 * 50e6 - 90e6 - 10e6


async def test_an_open_loop_keeps_its_rate(engine: Engine) -> None:
    endpoint = _endpoint(engine)
    ask = chat(endpoint, MODEL, tokens=2)
    run = await open_loop(endpoint, lambda: ask, rate=200, connections=8, seconds=0.5)
    assert (run.tally.good, run.tally.failed) == (100, 0)
    assert 0.45 < run.seconds < 2


async def test_an_open_loop_outlives_connections_that_the_server_ends() -> None:
    async def once(writer: asyncio.StreamWriter) -> None:
        writer.write(_PLAIN.replace(b"content", b"connection: close\r\ncontent", 1))

    async with server(once) as endpoint:
        ask = Ask(endpoint.request({}))
        run = await open_loop(endpoint, lambda: ask, rate=100, connections=2, seconds=0.2)
    assert (run.tally.good, +run.tally.errors) == (20, {})


async def test_a_stream_that_comes_byte_by_byte() -> None:
    async def dribble(writer: asyncio.StreamWriter) -> None:
        data = _HEAD + b"".join(_chunked(_event(text)) for text in ("", "a", 'b"\\', "c\n\n"))
        for byte in data + _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async with server(dribble) as endpoint:
        outcome, tally = await _one(endpoint, Ask(endpoint.request({}), streamed=True, tokens=3))
    assert (outcome.tokens, outcome.error) == (3, None)
    assert tally.itl.count == 2


async def test_many_events_in_one_chunk_and_carriage_returns() -> None:
    async def at_once(writer: asyncio.StreamWriter) -> None:
        events = b"".join(_event(text) for text in ("", "a", "b")) + b"data: [DONE]\n\n"
        writer.write(_HEAD + _chunked(events.replace(b"\n", b"\r\n")) + b"0\r\n\r\n")

    async with server(at_once) as endpoint:
        outcome, _ = await _one(endpoint, Ask(endpoint.request({}), streamed=True, tokens=2))
    assert (outcome.tokens, outcome.error) == (2, None)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "status 503"),
        (_HEAD + _chunked(_event("a")) + b"0\r\n\r\n", "no [DONE]"),
        (_HEAD + _chunked(_event("a") + b"data: [DONE]\n\n") + b"0\r\n\r\n", "tokens missing"),
        (b"no HTTP at all\r\n\r\n", "protocol"),
        (_HEAD + _chunked(_event("a")), "connection"),
    ],
)
async def test_what_is_no_good_answer(sent: bytes, error: str) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        if error == "connection":
            writer.close()

    async with server(answer) as endpoint:
        outcome, _ = await _one(endpoint, Ask(endpoint.request({}), streamed=True, tokens=2))
    assert outcome.error == error


async def test_errors_are_counted_by_what_they_are() -> None:
    async def refuse(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 429 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    async with server(refuse) as endpoint:
        ask = Ask(endpoint.request({}))
        run = await closed_loop(endpoint, lambda: ask, connections=2, seconds=30, requests=6)
    assert (run.tally.good, run.tally.errors) == (0, {"status 429": 6})


async def test_streams_that_are_open_together(engine: Engine) -> None:
    running = Running("direct", _endpoint(engine), engine.child)
    held = await hold_open(running, streams=20, ramp_s=0.1, hold_s=0.6)
    assert (held.count, held.dropped, held.tally.failed) == (20, 0, 0)
    assert 20 <= held.held_tokens.count <= 3 * 20


async def test_disconnects_reach_the_engine(engine: Engine) -> None:
    running = Running("direct", _endpoint(engine), engine.child)
    freed = await disconnect(running, engine, 1)
    assert len(freed) == 3
    assert all(item.seconds is not None and item.seconds < 1 for item in freed)
    assert (await engine.state()).running == 0


async def test_the_engine_counts_what_it_has_done(engine: Engine) -> None:
    endpoint = _endpoint(engine)
    await engine.state(forget=True)
    body = chat_body(MODEL, tokens=9, stream=True, words="pace=5 tag=one")
    outcome, _ = await _one(endpoint, Ask(endpoint.request(body), True, 9, cut_after=4))
    assert outcome.cut
    for _ in range(100):
        state = await engine.state()
        if state.tags:
            break
        await asyncio.sleep(0.01)
    assert (state.requests, state.broken_off, state.running) == (1, 1, 0)
    assert 4 <= state.tags["one"].generated < 9
    assert not state.tags["one"].whole
