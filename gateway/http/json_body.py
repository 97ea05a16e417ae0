"""Reading a request's body within its limits, as a JSON object."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from gateway.config.sections import LimitsConfig
from gateway.http.connection import connection_of
from gateway.http.content_encoding import content_encodings, decode
from gateway.http.errors import ApiError, invalid_request
from gateway.http.json_numbers import deeper_than, infinite_number, large_integer

T = TypeVar("T")
_IN_THREAD_BYTES = 64 * 1024


async def read_json(
    request: Request, limits: LimitsConfig, timeout_s: float, convert: Callable[[dict[str, Any]], T]
) -> T:
    """The body as a JSON object, decompressed if it has a ``Content-Encoding``, and converted.

    A large body is parsed and converted in a thread.

    Raises `ApiError`: 415 for another content type or encoding, 413 over ``limits.max_body_bytes`` before or
    after decoding, 408 slower than ``timeout_s`` seconds, 400 for anything but a JSON object; and
    ``ClientDisconnect``.
    """
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    content_type = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if content_type != "application/json":
        excerpt = content_type[:80] or "none"
        raise ApiError(
            415,
            "invalid_request_error",
            "unsupported_media_type",
            f"The body must be sent with 'Content-Type: application/json', not {excerpt!r}.",
            headers={"connection": "close"},
        )
    encodings = content_encodings(request.scope) if b"content-encoding" in headers else ()
    declared = headers.get(b"content-length", b"").strip()
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits.max_body_bytes)
    body = await _read(request, limits.max_body_bytes, timeout_s)
    if encodings:
        body = await asyncio.to_thread(decode, body, encodings, limits.max_body_bytes)
    if len(body) > _IN_THREAD_BYTES:
        return await asyncio.to_thread(lambda: convert(parse_object(body, limits.max_json_depth)))
    return convert(parse_object(body, limits.max_json_depth))


async def _read(request: Request, limit: int, timeout_s: float) -> bytes:
    link = connection_of(request.scope)
    if link is not None and link.body_complete:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body: bytes = message["body"]
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            408,
            "invalid_request_error",
            "request_timeout",
            f"The body did not arrive within {timeout_s:g} seconds.",
            headers={"connection": "close"},
        ) from None
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    message = f"The body is larger than {limit} bytes, the most that this gateway accepts."
    headers = {"connection": "close"}
    return ApiError(413, "invalid_request_error", "request_too_large", message, headers=headers)


def parse_object(body: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object; raises 400 for anything else, nesting deeper than ``max_depth`` included."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        param = infinite_number(body)
        what = f"{error}" if param is None else f"'{param}' is not a finite number of 64 bits"
        raise invalid_request(
            f"We could not parse the JSON body of your request: {what}.", param, "invalid_json"
        ) from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    if not isinstance(value, dict):
        raise invalid_request("The JSON body must be an object.", code="invalid_json")
    if body.count(b"{") + body.count(b"[") > max_depth and deeper_than(value, max_depth):
        raise _too_deep(max_depth)
    if (param := large_integer(body, value)) is not None:
        raise invalid_request(
            f"Invalid value for '{param}': integers must fit into 64 bits.", param, "invalid_value"
        )
    return value


def _too_deep(max_depth: int) -> ApiError:
    return invalid_request(f"The JSON body is nested deeper than {max_depth} levels.", code="too_deep")
