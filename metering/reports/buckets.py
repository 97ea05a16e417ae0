"""Time buckets aligned to UTC, and the cursor that says where the next page of them begins."""

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass

_WIDTHS = {"1m": (60, 60, 1440), "1h": (3_600, 24, 168), "1d": (86_400, 7, 31)}
_PREFIX = "page_"
_CURSOR = struct.Struct(">Q8s")

WIDTHS = tuple(_WIDTHS)


@dataclass(frozen=True, slots=True)
class Width:
    """A bucket width in seconds, and how many buckets a page has by default and at most (OpenAI's)."""

    seconds: int
    default_limit: int
    max_limit: int

    @classmethod
    def named(cls, name: str) -> "Width":
        """The width of a bucket, which must be in `WIDTHS`."""
        return cls(*_WIDTHS[name])

    def index(self, at: int) -> int:
        """The number of the bucket that a unix second falls into."""
        return at // self.seconds

    def start(self, index: int) -> int:
        """The first unix second of a bucket."""
        return index * self.seconds


@dataclass(frozen=True, slots=True)
class Span:
    """The buckets of one page: ``(start, end)`` in unix seconds, and where the next page starts."""

    buckets: list[tuple[int, int]]
    next_start: int | None


def page_of_buckets(width: Width, start: int, end: int, limit: int) -> Span:
    """At most ``limit`` buckets from ``start`` to ``end`` (exclusive); the first one begins at ``start``.

    Every bucket ends where the next aligned one begins, the last one as well: only entries before ``end``
    are counted in it.
    """
    buckets: list[tuple[int, int]] = []
    while start < end and len(buckets) < limit:
        following = width.start(width.index(start) + 1)
        buckets.append((start, following))
        start = following
    return Span(buckets, start if start < end else None)


def encode_cursor(start: int, query: str) -> str:
    """An opaque cursor that is good for this query only."""
    return _PREFIX + base64.urlsafe_b64encode(_CURSOR.pack(start, _fingerprint(query))).decode().rstrip("=")


def decode_cursor(cursor: str, query: str) -> int | None:
    """Where the page starts; ``None`` for anything that was not made for this query."""
    text = cursor.removeprefix(_PREFIX)
    try:
        start, fingerprint = _CURSOR.unpack(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", True))
    except (binascii.Error, struct.error, ValueError):
        return None
    if fingerprint != _fingerprint(query) or cursor != encode_cursor(start, query):
        return None
    return int(start)


def _fingerprint(query: str) -> bytes:
    return hashlib.blake2b(query.encode("utf-8", "surrogatepass"), digest_size=8).digest()
