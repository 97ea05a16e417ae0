"""JSON as servers really write it: ``NaN``, numbers beyond any type, halves of surrogate pairs, broken UTF-8.

msgspec reads what the standard allows, several times as fast as the standard library, which reads the rest.
Clients in other languages refuse the rest, so it is never passed on as it came.
"""

import json
import math
from typing import Any

import msgspec

_MOST_DIGITS = 400


def loads(data: bytes) -> Any:
    """The value, with null for numbers that are not finite.

    Raises `ValueError` if it is not JSON at all, or nested too deeply to be read.
    """
    return read(data)[0]


def read(data: bytes) -> tuple[Any, bool]:
    """The value, as `loads` gives it, and whether ``data`` is standard JSON. Raises as `loads` does."""
    try:
        return msgspec.json.decode(data), True
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    text = data.decode(errors="replace").removeprefix("\ufeff")
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_null)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    return value, False


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are text: msgspec does not look at strings that it need not decode."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def dumps(value: Any) -> bytes:
    """The value that `loads` has read as JSON again, in ASCII where msgspec refuses it."""
    try:
        return msgspec.json.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return json.dumps(value, separators=(",", ":")).encode()


def _integer(digits: str) -> float | None:
    """Python refuses to read integers of very many digits, and no float can hold them."""
    return int(digits) if len(digits) < _MOST_DIGITS else None


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _null(_name: str) -> None:
    """In the place of ``NaN`` and the infinities."""
