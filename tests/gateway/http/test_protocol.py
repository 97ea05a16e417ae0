"""The limits of the HTTP server, over a real connection: each refusal in the envelope, then the end."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.gateway.serving import serving


async def _echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


@asynccontextmanager
async def _serving() -> AsyncIterator[int]:
    app = Starlette(routes=[Route("/", _echo, methods=["GET", "POST"])])
    async with serving(app, max_header_bytes=2048, header_timeout_s=0.3) as port:
        yield port


async def _exchange(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send the parts with pauses between, then read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


def _refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert re.search(rb"^x-request-id: [\w.:-]+\r$", head + b"\r", re.M)
    assert re.search(rb"^openai-processing-ms: \d+\r$", head + b"\r", re.M)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error["code"]


CLOSE = b"Connection: close\r\n"


async def test_a_good_request_is_answered() -> None:
    async with _serving() as port:
        request = b"POST / HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"Content-Length: 5\r\n\r\nhello"
        assert (await _exchange(port, request)).endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Large: " + b"x" * 4000 + b"\r\n\r\n",
        b"GET /?" + b"x" * 4000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Many: 1\r\n" * 300 + b"\r\n",
    ],
)
async def test_a_large_head_is_a_431(head: bytes) -> None:
    async with _serving() as port:
        assert _refusal(await _exchange(port, head)) == (431, "headers_too_large")


async def test_a_head_without_end_is_a_431() -> None:
    async with _serving() as port:
        answer = await _exchange(port, b"GET / HTTP/1.1\r\nX: ", *[b"x" * 500] * 6, pause_s=0.01)
        assert _refusal(answer) == (431, "headers_too_large")


@pytest.mark.parametrize("trailer", [b"X: 1\r\n" * 100_000, b"X: " + b"x" * 600_000])
async def test_an_endless_trailer_is_a_431(trailer: bytes) -> None:
    """The client sees it although it is still sending."""
    async with _serving() as port:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        assert _refusal(await _exchange(port, head, trailer)) == (431, "headers_too_large")


async def test_a_large_body_behind_a_small_head_is_no_431() -> None:
    async with _serving() as port:
        request = b"POST / HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"Content-Length: 9000\r\n\r\n" + b"x" * 9000
        assert (await _exchange(port, request)).endswith(b"x" * 9000)


async def test_a_slow_head_is_a_408() -> None:
    async with _serving() as port:
        answer = await _exchange(port, b"GET / HTTP/1.1\r\n", b"Host:", pause_s=0.25)
        assert _refusal(answer) == (408, "request_timeout")


def _lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """The fields of the access log's lines."""
    return [record.__dict__["fields"] for record in caplog.records if record.name == "torpor.access"]


async def test_a_refusal_has_the_clients_request_id_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "torpor.access")
    head = b"GET /v1/models?key=s HTTP/1.1\r\nX-Request-Id: mine\r\nHost: a\r\n"
    async with _serving() as port:
        answers = [
            await _exchange(port, head + b"X-Large: " + b"x" * 4000 + b"\r\n\r\n"),
            await _exchange(port, head, pause_s=0.4),
            await _exchange(port, head + b"no header\r\n\r\n"),
            await _exchange(port, b"\x16\x03\x01"),
        ]
    lines = _lines(caplog)
    assert [line["status"] for line in lines] == [431, 408, 400, 400]
    for line, answer in zip(lines, answers, strict=True):
        assert b"\r\nx-request-id: %s\r\n" % str(line["request_id"]).encode() in answer
        assert line["client"] == "127.0.0.1"
    for line in lines[:3]:
        assert (line["request_id"], line["method"], line["path"]) == ("mine", "GET", "/v1/models")
    assert 300 <= float(str(lines[1]["total_ms"])) < 1000
    assert "path" not in lines[3]


async def test_a_refusal_behind_a_good_request_is_not_that_ones(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "torpor.access")
    async with _serving() as port:
        good = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: good\r\n\r\n"
        answer = await _exchange(port, good, b"\x00\r\n\r\n", pause_s=0.1)
    assert answer.count(b"HTTP/1.1 400") == 1
    assert b"good" not in answer
    assert len(_lines(caplog)) == 1


async def test_a_silent_connection_is_closed() -> None:
    async with _serving() as port:
        assert await _exchange(port) == b""


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
)
async def test_what_is_no_http_is_a_400(garbage: bytes) -> None:
    async with _serving() as port:
        assert _refusal(await _exchange(port, garbage)) == (400, "invalid_http")


async def test_a_second_request_on_a_connection_has_its_own_time() -> None:
    async with _serving() as port:
        request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        last = b"GET / HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"\r\n"
        answer = await _exchange(port, request, request, last, pause_s=0.2)
        assert answer.count(b"HTTP/1.1 200") == 3
