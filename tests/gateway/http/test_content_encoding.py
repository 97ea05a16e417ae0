"""Compressed bodies: decoded within the limit, on both ways to an endpoint."""

import bz2
import gzip
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from gateway.http.content_encoding import content_encodings, decode
from gateway.http.errors import ApiError
from tests.gateway.raw_http import Call, connected
from tests.process import Gateway

MIB = 1024 * 1024
LIMIT = 4 * MIB


def _raw(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


def _members(body: bytes) -> bytes:
    middle = len(body) // 2
    return gzip.compress(body[:middle]) + gzip.compress(b"") + gzip.compress(body[middle:])


def _same(body: bytes) -> bytes:
    return body


GOOD: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("GZIP", gzip.compress),
    ("x-gzip", gzip.compress),
    ("gzip", _members),
    ("gzip", lambda body: gzip.compress(body, 0)),
    ("deflate", zlib.compress),
    ("deflate", lambda body: zlib.compress(body, 0)),
    ("deflate", _raw),
    ("identity", _same),
    ("", _same),
    ("identity, gzip", gzip.compress),
    ("gzip, identity ,", gzip.compress),
    ("gzip, deflate", lambda body: zlib.compress(gzip.compress(body))),
    ("deflate, gzip", lambda body: gzip.compress(_raw(body))),
    ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
    ("deflate\r\nContent-Encoding: gzip", lambda body: gzip.compress(zlib.compress(body))),
]


@pytest.mark.parametrize(("coding", "encode"), GOOD, ids=[coding for coding, _ in GOOD])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_an_encoded_body_is_decoded(
    call: Call, coding: str, encode: Callable[[bytes], bytes], in_chunks: bool
) -> None:
    request = call.request(f"Content-Encoding: {coding}", body=encode(call.body), in_chunks=in_chunks)
    with connected(call.gateway) as connection:
        connection.send(request)
        assert call.is_answered(connection.answer())
        connection.send(call.request())
        assert call.is_answered(connection.answer())


@pytest.mark.parametrize(
    ("coding", "named"),
    [
        ("br", "'br'"),
        ("zstd", "'zstd'"),
        ("compress", "'compress'"),
        ("gzip, br", "'br'"),
        ("nonsense<script>", "'nonsense<script>'"),
        ("gzip;q=1", "'gzip;q=1'"),
        ("*", "'*'"),
        ("gzip, gzip, gzip, gzip, gzip", "5 encodings"),
    ],
)
def test_another_encoding_is_a_415_that_says_what_is_supported(call: Call, coding: str, named: str) -> None:
    with connected(call.gateway) as connection:
        connection.send(call.request(f"Content-Encoding: {coding}", body=bz2.compress(call.body)))
        answer = connection.answer()
    assert answer.code == (415, "unsupported_media_type")
    assert named in answer.error["message"]
    assert "gzip, deflate" in answer.error["message"]
    assert answer.headers["accept-encoding"] == "gzip, deflate"


def _flipped(body: bytes) -> bytes:
    data = bytearray(gzip.compress(body))
    data[-6] ^= 1  # of the checksum
    return bytes(data)


BAD: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", _same),
    ("gzip", lambda body: b""),
    ("gzip", lambda body: gzip.compress(body)[:-1]),
    ("gzip", lambda body: gzip.compress(body)[:9]),
    ("gzip", lambda body: gzip.compress(body) + b"rest"),
    ("gzip", zlib.compress),
    ("gzip", _flipped),
    ("deflate", _same),
    ("deflate", lambda body: b""),
    ("deflate", lambda body: b"\x78"),
    ("deflate", lambda body: zlib.compress(body)[:-1]),
    ("deflate", lambda body: zlib.compress(body) + b"rest"),
    ("deflate", lambda body: _raw(body)[:-1]),
    ("deflate", gzip.compress),
    ("gzip, deflate", zlib.compress),
]


@pytest.mark.parametrize(("coding", "encode"), BAD)
def test_data_that_is_corrupt_or_incomplete_is_a_400(
    call: Call, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    with connected(call.gateway) as connection:
        connection.send(call.request(f"Content-Encoding: {coding}", body=encode(call.body)))
        answer = connection.answer()
        assert answer.code == (400, "invalid_encoding")
        connection.send(call.request())
        assert call.is_answered(connection.answer())


def test_decoded_text_that_is_no_json_is_a_400(call: Call) -> None:
    with connected(call.gateway) as connection:
        connection.send(call.request("Content-Encoding: gzip", body=gzip.compress(b"{")))
        assert connection.answer().code == (400, "invalid_json")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip"])
def test_a_bomb_is_a_413(call: Call, coding: str) -> None:
    body = zlib.compress(bytes(64 * MIB), 9) if coding == "deflate" else gzip.compress(bytes(64 * MIB))
    if coding == "gzip, gzip":
        body = gzip.compress(body)
    with connected(call.gateway) as connection:
        connection.send(call.request(f"Content-Encoding: {coding}", body=body))
        answer = connection.answer()
        assert answer.code == (413, "request_too_large")
        assert str(LIMIT) in answer.error["message"]


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    body = gzip.compress(bytes(256 * MIB))
    tracemalloc.start()
    try:
        with pytest.raises(ApiError) as caught:
            decode(body, ["gzip"], LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.status == 413
    assert peak < 3 * LIMIT


@pytest.mark.parametrize("size", [0, 1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, LIMIT - 1, LIMIT, LIMIT + 1])
@pytest.mark.parametrize("level", [0, 6])
def test_the_limit_is_of_decoded_bytes(size: int, level: int) -> None:
    body = bytes(size)
    for coding, data in (("gzip", gzip.compress(body, level)), ("deflate", zlib.compress(body, level))):
        if size > LIMIT:
            with pytest.raises(ApiError) as caught:
                decode(data, [coding], LIMIT)
            assert caught.value.status == 413
        else:
            assert decode(data, [coding], LIMIT) == body


def test_a_body_of_very_many_members_is_refused() -> None:
    assert decode(gzip.compress(b"ab") * 1000, ["gzip"], LIMIT) == b"ab" * 1000
    began = time.process_time()
    with pytest.raises(ApiError) as caught:
        decode(gzip.compress(b"") * (LIMIT // 20), ["gzip"], LIMIT)
    assert caught.value.code == "invalid_encoding"
    assert time.process_time() - began < 5


def test_an_upload_with_an_encoding_is_a_415_that_says_what_to_do(routed: Gateway) -> None:
    with routed.http() as http:
        answer = http.post(
            "/v1/torpor/adapters",
            headers={"content-type": "multipart/form-data; boundary=x", "content-encoding": "gzip"},
            content=gzip.compress(b"--x--\r\n"),
        )
    assert answer.status_code == 415
    assert "Content-Encoding" in answer.json()["error"]["message"]
    assert answer.headers["accept-encoding"] == "identity"


def test_encodings_are_read_from_every_line() -> None:
    headers = [(b"content-encoding", b"gzip, identity"), (b"content-encoding", b"Deflate")]
    assert content_encodings({"headers": headers}) == ["gzip", "deflate"]
