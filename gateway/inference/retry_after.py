"""When a busy server wants to be asked again: ``Retry-After`` (RFC 9110, 10.2.3) and ``retry-after-ms``.

The latter is OpenAI's own, and preferred by its clients.
"""

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

_NUMBER = re.compile(r"\d+(?:\.\d*)?")
_UNKNOWN_S = 1
MOST_S = 3600
"""A longer wait is not passed on: by then the server may have recovered, or the gateway use another one."""


def retry_after_s(headers: Mapping[str, str]) -> int:
    """Whole seconds, from 1 to `MOST_S`; 1 if the headers (names in lower case) do not say.

    A date is compared with the answer's own ``Date``, so the clocks need not agree.
    """
    wait_s = _seconds(headers.get("retry-after-ms"), 1000.0)
    if wait_s is None:
        wait_s = _seconds(headers.get("retry-after"), 1.0)
    if wait_s is None:
        wait_s = _until(headers.get("retry-after"), headers.get("date"))
    return _UNKNOWN_S if wait_s is None else max(1, math.ceil(min(MOST_S, wait_s)))


def _seconds(value: str | None, unit: float) -> float | None:
    if value is None or _NUMBER.fullmatch(value.strip()) is None:
        return None
    return float(value) / unit


def _until(value: str | None, now: str | None) -> float | None:
    at = _timestamp(value)
    if at is None:
        return None
    since = _timestamp(now)
    return at - (time.time() if since is None else since)


def _timestamp(value: str | None) -> float | None:
    """Parse an HTTP date in any of its three forms; None if it is not one."""
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
