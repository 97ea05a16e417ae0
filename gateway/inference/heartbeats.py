"""When a stream that waits for its engine sends a comment, so no proxy closes the connection."""

MOST_COMMENTS = 100
"""In the longest wait. go-openai gives up after 300 lines without data; a comment takes two, with the empty
line that ends it."""
_AS_IDEAL = MOST_COMMENTS // 2
_FIRST_S, _LAST_S = 1.0, 15.0
_GROWTH = 1 / 6


class Heartbeats:
    """The comments of one request, over all the waits that it has: at most `MOST_COMMENTS` in ``longest_s``.

    The first half comes every second at first and, the longer the wait, the more seldom, but every 15 s at
    least. The second half is spread evenly over the rest of the longest wait, if that needs longer intervals.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._sent = 0

    def next_s(self, waited_s: float) -> float | None:
        """Count a comment that is sent after ``waited_s`` seconds; returns how long to wait for the next.

        None if no further comment is to be sent.
        """
        self._sent += 1
        left = MOST_COMMENTS - self._sent
        if left <= 0:
            return None
        ideal_s = min(max(_FIRST_S, waited_s * _GROWTH), _LAST_S)
        if self._sent < _AS_IDEAL:
            return ideal_s
        return max(ideal_s, (self._longest_s - waited_s) / left)
