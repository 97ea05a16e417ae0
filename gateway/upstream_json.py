"""JSON as servers really write it: ``NaN``, numbers beyond any type, halves of surrogate pairs, broken UTF-8.

msgspec reads what the standard allows, several times as fast as the standard library, which reads the rest.
"""

import json
from typing import Any

import msgspec

_MOST_DIGITS = 400


def loads(data: bytes) -> Any:
    """The value. Raises `ValueError` if it is not JSON at all, or nested too deeply to be read."""
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return json.loads(data.decode(errors="replace"), parse_int=_integer)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def dumps(value: Any) -> bytes:
    """The value that `loads` has read as JSON again, in ASCII where msgspec refuses it."""
    try:
        return msgspec.json.encode(value)
    except (OverflowError, UnicodeEncodeError):
        return json.dumps(value, separators=(",", ":")).encode()


def _integer(digits: str) -> float:
    """Python refuses to read integers of very many digits; what no float can hold is infinite."""
    return int(digits) if len(digits) < _MOST_DIGITS else float(digits)
