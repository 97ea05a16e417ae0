"""Heads and credentials that two servers could read differently, over raw connections to a real gateway."""

import pytest

from tests.gateway.raw_http import Call, Connection, head
from tests.process import Gateway

FRAMINGS = [
    ("Content-Length: 5", "Content-Length: 5"),
    ("Content-Length: 5", "Content-Length: 6"),
    ("Content-Length: 5, 5",),
    ("Content-Length: +5",),
    ("Content-Length: 0x5",),
    ("Content-Length: -5",),
    ("Content-Length:",),
    ("Content-Length: 5", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked", "Content-Length: 5"),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked, identity",),
    ("Transfer-Encoding: identity",),
    ("Transfer-Encoding: gzip",),
    ("Transfer-Encoding : chunked",),
    ("Transfer-Encoding:\x0bchunked",),
]


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
def test_a_framing_that_two_servers_could_read_differently(
    call: Call, connection: Connection, framing: tuple[str, ...]
) -> None:
    smuggled = head("GET", "/v1/models", "Host: a", f"Authorization: Bearer {call.gateway.api_key}")
    connection.send(head("POST", call.path, *call.lines(*framing)) + b"0\r\n\r\n" + smuggled)
    assert connection.answer().code == (400, "invalid_http")
    assert connection.at_end()


def test_a_transfer_encoding_that_is_not_known(call: Call, connection: Connection) -> None:
    connection.send(head("POST", call.path, *call.lines("Transfer-Encoding: gzip, chunked")))
    answer = connection.answer()
    assert answer.code == (501, "not_supported")
    assert answer.headers["x-should-retry"] == "false"


def test_an_http_1_0_request_with_a_transfer_encoding(call: Call, connection: Connection) -> None:
    connection.send(call.request(in_chunks=True, version="1.0"))
    assert connection.answer().code == (400, "invalid_http")


KEY = "Authorization: Bearer {key}"
HEADS: list[tuple[str, list[str]]] = [
    ("no host", [KEY]),
    ("two hosts", ["Host: a", "Host: b", KEY]),
    ("the same host twice", ["Host: a", "host: a", KEY]),
    ("a host that is none", ["Host: a b", KEY]),
    ("a host with a path", ["Host: a/b", KEY]),
    ("a host with a user", ["Host: user@a", KEY]),
    ("a host with a port that is none", ["Host: a:b", KEY]),
    ("a host with two ports", ["Host: a:1:2", KEY]),
    ("a host with half an address", ["Host: [::1", KEY]),
    ("a host with half an escape", ["Host: a%4", KEY]),
    ("two content types", ["Host: a", KEY, "Content-Type: application/json", "Content-Type: text/plain"]),
    ("a folded line", ["Host: a", KEY, "X-Folded: a\r\n b"]),
    ("a folded credential", ["Host: a", "Authorization: Bearer\r\n {key}"]),
    ("a space before the colon", ["Host : a", KEY]),
    ("a bare CR", ["Host: a", KEY, "X: a\rb"]),
    ("a bare LF", ["Host: a", KEY, "X: a\nb"]),
    ("a NUL", ["Host: a", KEY, "X: a\x00b"]),
]


@pytest.mark.parametrize(("_name", "lines"), HEADS, ids=[name for name, _ in HEADS])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_head_that_is_ambiguous_is_a_400(
    routed: Gateway, connection: Connection, _name: str, lines: list[str], version: str
) -> None:
    key = routed.api_key
    connection.send(head("GET", "/v1/models", *[line.format(key=key) for line in lines], version=version))
    answer = connection.answer()
    if version == "1.0" and _name == "no host":
        assert answer.status == 200
    else:
        assert answer.code == (400, "invalid_http")


@pytest.mark.parametrize("host", ["", "a", "a:80", "[::1]:8080", "127.0.0.1", "a.b-c_d.example.", "a "])
def test_a_good_host(routed: Gateway, connection: Connection, host: str) -> None:
    connection.send(head("GET", "/v1/models", f"Host: {host}", f"Authorization: Bearer {routed.api_key}"))
    assert connection.answer().status == 200


def test_a_request_without_host_leaves_the_connection_as_it_is(call: Call, connection: Connection) -> None:
    """Where it ends is known: its body is passed over, and the next one is served."""
    body = b"{" + b" " * 200_000 + b"}"
    connection.send(head("POST", call.path, *call.lines(f"Content-Length: {len(body)}")[1:]) + body)
    answer = connection.answer()
    assert answer.code == (400, "invalid_http")
    assert "Host" in answer.error["message"]
    connection.send(call.request())
    assert call.is_answered(connection.answer())


CREDENTIALS = [
    ["Authorization: Bearer {key}", "Authorization: Bearer {key}"],
    ["Authorization: Bearer {key}", "authorization: Bearer sk-other"],
    ["Authorization: Basic YTpi", "Authorization: Bearer {key}"],
    ["Authorization: Bearer {key}", "x-api-key: sk-other"],
    ["x-api-key: sk-other", "Authorization: Bearer {key}"],
    ["Authorization: Bearer {key}", "x-api-key:"],
    ["Authorization: Bearer", "x-api-key: {key}"],
    ["Authorization: Basic YTpi", "x-api-key: {key}"],
    ["x-api-key: {key}", "x-api-key: {key}"],
    ["Authorization: Bearer {key}", "x-api-key: {key}", "x-api-key: {key}"],
]


@pytest.mark.parametrize("lines", CREDENTIALS, ids=lambda lines: " + ".join(lines))
def test_several_credentials_are_a_400(call: Call, connection: Connection, lines: list[str]) -> None:
    key = call.gateway.api_key
    more = [line.format(key=key) for line in lines]
    framing = ["Host: a", "Content-Type: application/json", f"Content-Length: {len(call.body)}"]
    connection.send(head("POST", call.path, *framing, *more) + call.body)
    answer = connection.answer()
    assert answer.code == (400, "ambiguous_credentials")
    assert key not in answer.body.decode()
    connection.send(call.request())
    assert call.is_answered(connection.answer())


@pytest.mark.parametrize(
    "lines", [["x-api-key: {key}"], ["X-API-Key: {key}", "Authorization: bearer  {key}"]]
)
def test_an_api_key_header_is_a_credential(call: Call, connection: Connection, lines: list[str]) -> None:
    more = [line.format(key=call.gateway.api_key) for line in lines]
    framing = ["Host: a", "Content-Type: application/json", f"Content-Length: {len(call.body)}"]
    connection.send(head("POST", call.path, *framing, *more) + call.body)
    assert call.is_answered(connection.answer())


@pytest.mark.parametrize("line", ["x-api-key: sk-wrong", "x-api-key:", "x-api-key: {key}x"])
def test_a_wrong_api_key_header_is_a_401(routed: Gateway, connection: Connection, line: str) -> None:
    connection.send(head("GET", "/v1/models", "Host: a", line.format(key=routed.api_key)))
    assert connection.answer().code == (401, "invalid_api_key")


@pytest.mark.parametrize("version", ["0.9", "2.0", "3.0"])
@pytest.mark.parametrize("method", ["GET", "PRI"])
def test_another_version_of_http(connection: Connection, version: str, method: str) -> None:
    connection.send(head(method, "/v1/models", "Host: a", version=version))
    assert connection.answer().code == (400, "invalid_http")
    assert connection.at_end()


def test_an_absolute_target(routed: Gateway, connection: Connection) -> None:
    key = f"Authorization: Bearer {routed.api_key}"
    connection.send(head("GET", "http://gateway/v1/models", "Host: gateway", key))
    assert connection.answer().status == 200
