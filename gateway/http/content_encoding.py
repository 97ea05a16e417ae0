"""Bodies that arrive compressed: RFC 9110, section 8.4; gzip is RFC 1952, zlib 1950, deflate 1951."""

import zlib
from collections.abc import Mapping, Sequence

from starlette.types import Scope

from gateway.http.errors import ApiError, invalid_request

_GZIP_BITS = 31
_ZLIB_BITS = 15
_RAW_BITS = -15
_BITS: Mapping[str, int] = {"gzip": _GZIP_BITS, "x-gzip": _GZIP_BITS, "deflate": _ZLIB_BITS}
_SUPPORTED = "gzip, deflate"
_MAX_ENCODINGS = 4
_MAX_MEMBERS = 1024
"""Of one gzip body. Each costs a decompressor, and a tool that writes in blocks makes one of every 64 KiB."""
_STEP_BYTES = 64 * 1024


def content_encodings(scope: Scope) -> list[str]:
    """The encodings of the body in the order in which they were applied, without ``identity``.

    Raises 415 for one that is not supported.
    """
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"content-encoding"]
    named = [coding.strip().lower() for coding in ",".join(lines).split(",")]
    encodings = [coding for coding in named if coding not in ("", "identity")]
    for coding in encodings:
        if coding not in _BITS:
            raise _unsupported(f"The Content-Encoding {coding[:40]!r} is not supported.")
    if len(encodings) > _MAX_ENCODINGS:
        raise _unsupported(f"The body has {len(encodings)} encodings, more than {_MAX_ENCODINGS}.")
    return encodings


def refuse_encoded(scope: Scope) -> None:
    """Refuse an upload that arrives compressed: raises 415."""
    named = [value for name, value in scope["headers"] if name == b"content-encoding"]
    if any(value.strip().lower() not in (b"", b"identity") for value in named):
        message = "An upload must be sent without Content-Encoding; its files may be compressed themselves."
        raise ApiError(
            415,
            "invalid_request_error",
            "unsupported_media_type",
            message,
            headers={"accept-encoding": "identity", "connection": "close"},
        )


def decode(body: bytes, encodings: Sequence[str], limit: int) -> bytes:
    """The body without its encodings.

    Raises 413 as soon as one of them yields more than ``limit`` bytes, which bounds the memory that a body
    can take, and 400 for data that is corrupt or incomplete.
    """
    for coding in reversed(encodings):
        try:
            body = _inflate(body, _bits(coding, body), limit)
        except zlib.error:
            raise _corrupt(coding, "is corrupt") from None
    return body


def _bits(coding: str, body: bytes) -> int:
    """Many clients send ``deflate`` without the wrapper of zlib, which is known by its first two bytes."""
    if coding != "deflate" or len(body) < 2:
        return _BITS[coding]
    is_zlib = body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2]) % 31 == 0
    return _ZLIB_BITS if is_zlib else _RAW_BITS


def _inflate(body: bytes, bits: int, limit: int) -> bytes:
    """One encoding taken off. A gzip body may have several members, one after the other."""
    coding = "gzip" if bits == _GZIP_BITS else "deflate"
    rest = memoryview(body)
    decoded: list[bytes] = []
    size = 0
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(bits)
        while not member.eof:
            step = member.unconsumed_tail or rest[:_STEP_BYTES]
            if not member.unconsumed_tail:
                rest = rest[len(step) :]
            piece = member.decompress(step, limit + 1 - size)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            decoded.append(piece)
            if not piece and not member.unconsumed_tail and not rest and not member.eof:
                raise _corrupt(coding, "is incomplete")
        rest = memoryview(body)[len(body) - len(rest) - len(member.unused_data) :]
        if not rest:
            return b"".join(decoded)
        if bits != _GZIP_BITS:
            raise _corrupt(coding, f"is followed by {len(rest)} other bytes")
    raise _corrupt(coding, f"has more than {_MAX_MEMBERS} members")


def _unsupported(what: str) -> ApiError:
    message = f"{what} Supported are {_SUPPORTED} and no encoding."
    headers = {"accept-encoding": _SUPPORTED, "connection": "close"}
    return ApiError(415, "invalid_request_error", "unsupported_media_type", message, headers=headers)


def _too_large(limit: int) -> ApiError:
    message = f"The decoded body is larger than {limit} bytes, the most that this gateway accepts."
    return ApiError(413, "invalid_request_error", "request_too_large", message)


def _corrupt(coding: str, how: str) -> ApiError:
    return invalid_request(f"The body cannot be decoded: its {coding} data {how}.", code="invalid_encoding")
