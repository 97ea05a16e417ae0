"""Upper bound on a consumer's lag, from two increasing sequence numbers and no per-item timestamps."""


class Lag:
    """The lag of a consumer behind a producer whose numbers rise. Times in seconds of one clock.

    One number is followed at a time. When it is reached, whatever is still behind came after the moment at
    which it was noted, and the newest number is noted next: so `seconds` is never less than the age of the
    oldest that is behind, and more than it by one round at most.
    """

    def __init__(self) -> None:
        self._newest = 0
        self._noted: tuple[int, float] | None = None
        self._behind_since: float | None = None

    def leads(self, number: int, now: float) -> None:
        """The leader has come to this number."""
        self._newest = number
        if self._noted is None:
            self._noted, self._behind_since = (number, now), now

    def follows(self, number: int, now: float) -> None:
        """The follower has come to this number."""
        if self._noted is None or number < self._noted[0]:
            return
        if number >= self._newest:
            self._noted = self._behind_since = None
        else:
            self._noted, self._behind_since = (self._newest, now), self._noted[1]

    def seconds(self, now: float) -> float:
        """How long it has been behind by now."""
        return 0.0 if self._behind_since is None else now - self._behind_since
