"""Requests as other HTTP software really sends them, over raw connections to a real gateway."""

import time

import pytest

from tests.gateway.raw_http import Answer, Call, Connection, call_of, head, pieces
from tests.process import Gateway

H2C = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA",
)
WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAA",
)
OTHERS = [
    ("Connection: upgrade", "Upgrade: TLS/1.0, HTTP/2.0"),
    ("Connection: keep-alive, UPGRADE", "Upgrade: nonsense"),
    ("Upgrade: h2c", "Connection: Upgrade"),
    ("Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"),
    ("Upgrade: h2c",),
    ("Connection: Upgrade",),
]


def _models(gateway: Gateway, *more: str, version: str = "1.1", method: str = "GET") -> bytes:
    host = ["Host: gateway"] if version == "1.1" else []
    key = f"Authorization: Bearer {gateway.api_key}"
    return head(method, "/v1/models", *host, key, *more, version=version)


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET, *OTHERS], ids=str)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_an_upgrade_is_ignored_and_the_request_served(
    call: Call, connection: Connection, offer: tuple[str, ...], in_chunks: bool
) -> None:
    for _ in range(2):
        connection.send(call.request(*offer, in_chunks=in_chunks))
        assert call.is_answered(connection.answer())
    connection.send(call.request())
    assert call.is_answered(connection.answer())


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_an_upgrade_that_arrives_in_several_reads(
    call: Call, connection: Connection, size: int, in_chunks: bool
) -> None:
    connection.send(*pieces(call.request(*H2C, in_chunks=in_chunks), size))
    assert call.is_answered(connection.answer())


def test_the_body_that_comes_after_the_head_with_the_offer(call: Call, connection: Connection) -> None:
    """As Java's HttpClient sends it."""
    request = call.request(*H2C)
    start = len(request) - len(call.body)
    connection.send(request[:start])
    time.sleep(0.1)
    connection.send(request[start:])
    assert call.is_answered(connection.answer())


def test_pipelined_offers_are_answered_in_order(call: Call, connection: Connection) -> None:
    models = _models(call.gateway, *WEBSOCKET)
    connection.send(call.request(*H2C) + models + call.request(*WEBSOCKET, in_chunks=True) + models)
    assert call.is_answered(connection.answer())
    assert b'"far"' in connection.answer().body
    assert call.is_answered(connection.answer())
    assert b'"far"' in connection.answer().body


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_upgrade_of_a_get(routed: Gateway, connection: Connection, version: str) -> None:
    connection.send(_models(routed, *WEBSOCKET, version=version))
    assert connection.answer().status == 200
    assert version == "1.1" or connection.at_end()


def test_an_upgrade_with_a_close_ends_the_connection(call: Call, connection: Connection) -> None:
    connection.send(call.request("Connection: close, Upgrade", "Upgrade: h2c"))
    answer = connection.answer()
    assert call.is_answered(answer)
    assert answer.headers["connection"] == "close"
    assert connection.at_end()


def test_connect_is_refused(connection: Connection) -> None:
    connection.send(head("CONNECT", "example.com:443", "Host: example.com:443"))
    assert connection.answer().code == (400, "invalid_http")
    assert connection.at_end()


def _stream(call: Call) -> bytes:
    return call.body[:-1] + b', "stream": true}'


def test_an_http_1_0_stream_is_plain_bytes_until_the_end(routed: Gateway, connection: Connection) -> None:
    call = call_of(routed, "fast")
    connection.send(call.request(body=_stream(call), version="1.0"))
    answer = connection.answer()
    assert answer.status == 200
    assert not {"transfer-encoding", "content-length"} & set(answer.headers)
    assert answer.headers["connection"] == "close"
    assert answer.body.startswith(b"data: {")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert all(line.startswith((b"data: ", b": ")) for line in answer.body.splitlines() if line)


def test_an_http_1_0_stream_that_fails_ends_with_its_event(routed: Gateway, connection: Connection) -> None:
    call = call_of(routed, "fast")
    body = _stream(call).replace(b"What is the capital of France?", b"fault:cut")
    connection.send(call.request("Connection: keep-alive", body=body, version="1.0"))
    answer = connection.answer()
    assert b'"code":"engine_failed"' in answer.body.splitlines()[-2]


def test_a_plain_http_1_0_answer_has_its_length(call: Call, connection: Connection) -> None:
    connection.send(call.request(version="1.0"))
    answer = connection.answer()
    assert call.is_answered(answer)
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.headers["connection"] == "close"
    assert connection.at_end()


def test_an_http_1_0_connection_is_kept_where_the_client_asks(call: Call, connection: Connection) -> None:
    for _ in range(2):
        connection.send(call.request("Connection: Keep-Alive", version="1.0"))
        answer = connection.answer()
        assert call.is_answered(answer)
        assert answer.headers["connection"] == "keep-alive"
    connection.send(call.request(version="1.0"))
    assert call.is_answered(connection.answer())
    assert connection.at_end()


def test_an_http_1_0_head_and_an_error(routed: Gateway, connection: Connection) -> None:
    connection.send(_models(routed, "Connection: keep-alive", version="1.0", method="HEAD"))
    assert connection.answer("HEAD").status == 200
    connection.send(head("GET", "/nowhere", version="1.0"))
    assert connection.answer().code == (404, "not_found")
    assert connection.at_end()


def test_an_http_1_0_request_gets_no_100_continue(call: Call, connection: Connection) -> None:
    connection.send(call.request("Expect: 100-continue", version="1.0"))
    assert call.is_answered(connection.answer())


def test_a_content_length_that_counts_characters(routed: Gateway, connection: Connection) -> None:
    """The JSON is cut, which is its own 400; what is left of the body is not HTTP."""
    call = call_of(routed, "fast")
    body = call.body.replace(b"France", "Fränce, où?".encode())
    lines = call.lines(f"Content-Length: {len(body.decode())}")
    connection.send(head("POST", call.path, *lines) + body)
    assert connection.answer().code == (400, "invalid_json")
    last = connection.answer()
    assert last.code == (400, "invalid_http")
    assert last.headers["connection"] == "close"
    assert connection.at_end()


@pytest.mark.parametrize("rest", [b"}", b'"} more', b" ", b"\x00", b"\xc3\xa4", b"\r\n\r\n}", b"GET\r\n\r\n"])
@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_the_answer_comes_before_the_refusal_of_the_rest(
    call: Call, connection: Connection, rest: bytes, in_chunks: bool, apart: bool
) -> None:
    request = call.request(in_chunks=in_chunks)
    if apart:
        connection.send(request, *pieces(rest, 1))
    else:
        connection.send(request + rest)
    assert call.is_answered(connection.answer())
    last = connection.answer()
    assert last.code == (400, "invalid_http")
    assert last.headers["connection"] == "close"
    assert connection.at_end()


def test_a_stream_is_whole_before_the_refusal_of_the_rest(routed: Gateway, connection: Connection) -> None:
    call = call_of(routed, "fast")
    connection.send(call.request(body=_stream(call)) + b"rest of it")
    assert connection.answer().body.endswith(b"data: [DONE]\n\n")
    assert connection.answer().code == (400, "invalid_http")
    assert connection.at_end()


def test_all_good_requests_are_answered_before_the_refusal(call: Call, connection: Connection) -> None:
    connection.send(call.request() + _models(call.gateway) + call.request() + b"}}")
    assert call.is_answered(connection.answer())
    assert connection.answer().status == 200
    assert call.is_answered(connection.answer())
    assert connection.answer().code == (400, "invalid_http")
    assert connection.at_end()


def test_bytes_behind_the_last_request_are_of_no_request(call: Call, connection: Connection) -> None:
    """After ``Connection: close`` there is none: not even one that looks like it is served, or answered."""
    connection.send(call.request("Connection: close") + call.request() + b"}}")
    assert call.is_answered(connection.answer())
    assert connection.at_end()


@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r\n\r\n\r\n"])
@pytest.mark.parametrize("apart", [False, True])
def test_empty_lines_between_requests_are_skipped(
    call: Call, connection: Connection, blank: bytes, apart: bool
) -> None:
    connection.send(blank)
    for _ in range(3):
        connection.send(call.request() + blank)
        if apart:
            time.sleep(0.05)
        assert call.is_answered(connection.answer())


@pytest.mark.parametrize("broken", [b"zz\r\n", b"5\r\nhello!!", b"-1\r\n\r\n", b"fffffffffffffffff\r\n"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_chunked_body_that_breaks_off_is_answered(
    call: Call, connection: Connection, broken: bytes, apart: bool
) -> None:
    start = head("POST", call.path, *call.lines("Transfer-Encoding: chunked", "X-Request-Id: mine"))
    connection.send(*((start, broken) if apart else (start + broken,)))
    answer = connection.answer()
    assert answer.code == (400, "invalid_http")
    assert answer.headers["x-request-id"] == "mine"
    assert connection.at_end()


def test_a_broken_body_behind_a_good_request(call: Call, connection: Connection) -> None:
    start = head("POST", call.path, *call.lines("Transfer-Encoding: chunked"))
    connection.send(call.request() + start + b"zz\r\n")
    assert call.is_answered(connection.answer())
    assert connection.answer().code == (400, "invalid_http")
    assert connection.at_end()


@pytest.mark.parametrize("lines", [[], ["Authorization: Bearer sk-wrong"]])
def test_what_follows_a_refused_expectation_is_not_its_body(
    call: Call, connection: Connection, lines: list[str]
) -> None:
    """The client may leave the body out, as it was not told to go on."""
    framing = ["Content-Type: application/json", "Content-Length: 100", "Expect: 100-continue"]
    connection.send(head("POST", call.path, "Host: a", *framing, *lines))
    answer = connection.answer()
    assert answer.code == (401, "invalid_api_key")
    assert answer.headers["connection"] == "close"
    assert connection.at_end()


def test_an_expectation_is_met(call: Call, connection: Connection) -> None:
    for _ in range(2):
        request = call.request("Expect: 100-continue")
        start = len(request) - len(call.body)
        connection.send(request[:start])
        assert connection.answer().status == 100
        connection.send(request[start:])
        assert call.is_answered(connection.answer())


@pytest.mark.parametrize("size", [20_000_000, 5_000_000])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_client_sees_the_refusal_of_what_it_is_still_sending(
    call: Call, connection: Connection, size: int, in_chunks: bool
) -> None:
    connection.send(call.request(body=b"x" * size, in_chunks=in_chunks))
    answer = connection.answer()
    assert answer.code == (413, "request_too_large")
    assert answer.headers["connection"] == "close"
    assert connection.at_end()


def _answers(connection: Connection, count: int) -> list[Answer]:
    return [connection.answer() for _ in range(count)]


@pytest.mark.parametrize("size", [1, 50, 10_000])
def test_pipelined_requests_in_pieces(call: Call, connection: Connection, size: int) -> None:
    connection.send(
        *pieces(b"\r\n".join([call.request(), call.request(in_chunks=True), call.request()]), size)
    )
    assert all(call.is_answered(answer) for answer in _answers(connection, 3))
