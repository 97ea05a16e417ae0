"""JSON that no engine can be sent: RFC 8259 limits neither numbers (section 6) nor depth (section 9)."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

_LEAST, _MOST = -(2**63), 2**64 - 1
# No number of fewer digits has more than 64 bits: most bodies are done with this.
_MANY_DIGITS = re.compile(rb"\d{19}")
_NOT_FINITE = re.compile(rb"NaN|Infinity|\d[eE]\+?\d{3}|\d{300}")
_MOST_DIGITS = 308
_MOST_SHOWN = 128


def large_integer(body: bytes, value: Any) -> str | None:
    """The path of an integer in ``value``, the parsed ``body``, that does not fit into 64 bits; or None."""
    if _MANY_DIGITS.search(body) is None:
        return None
    return _path(value, lambda item: isinstance(item, int) and not _LEAST <= item <= _MOST)


def infinite_number(body: bytes) -> str | None:
    """The path of a number that makes ``body`` invalid: NaN, an infinity, or one beyond a double; or None."""
    if _NOT_FINITE.search(body) is None:
        return None
    try:
        value = json.loads(body, parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    return _path(value, lambda item: isinstance(item, float) and not math.isfinite(item))


def deeper_than(value: Any, max_depth: int) -> bool:
    """Whether arrays and objects, of which ``value`` is one, are nested in more than so many levels."""
    level = [value]
    for _ in range(max_depth):
        below: list[Any] = []
        for item in level:
            children = item.values() if isinstance(item, dict) else item
            below.extend(child for child in children if isinstance(child, dict | list))
        if not below:
            return False
        level = below
    return True


def _integer(text: str) -> int | float:
    """An infinity for what has more digits than a double, which Python refuses to convert, or is slow to."""
    return int(text) if len(text) <= _MOST_DIGITS else math.inf


def _path(value: Any, is_fault: Callable[[Any], bool]) -> str | None:
    """Where the first such item is, as ``messages[0].content``."""
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, dict):
            members = [(f"{path}.{name}" if path else str(name), member) for name, member in item.items()]
        elif isinstance(item, list):
            members = [(f"{path}[{index}]", member) for index, member in enumerate(item)]
        elif is_fault(item):
            return path[:_MOST_SHOWN]
        else:
            continue
        pending.extend(reversed(members))
    return None
