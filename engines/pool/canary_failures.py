"""Adapters that answer otherwise than they were seen to, in one engine after the other."""

import time

# So many engines in a row may be given up for one adapter; then it is refused, for a while that doubles.
_ENGINES = 2
_REFUSED_S = 60.0
_MOST_REFUSED_S = 3600.0


class Misfits:
    """Of one model, by digest: how many engines were given up for it, and until when it is refused."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._refused_until: dict[str, float] = {}

    def add(self, digest: str) -> None:
        """An engine was given up for it."""
        count = self._counts[digest] = self._counts.get(digest, 0) + 1
        if count >= _ENGINES:
            refused_s = min(_MOST_REFUSED_S, _REFUSED_S * 2.0 ** min(count - _ENGINES, 30))
            self._refused_until[digest] = time.monotonic() + refused_s

    def clear(self, digest: str) -> None:
        """Its canary has passed."""
        self._counts.pop(digest, None)
        self._refused_until.pop(digest, None)

    def refused(self, digest: str) -> bool:
        """Whether no engine is to be risked for it now."""
        return time.monotonic() < self._refused_until.get(digest, 0.0)
