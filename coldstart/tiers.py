"""The tiers of sleep, from the one that answers at once to the one that starts from nothing."""

from enum import StrEnum


class SleepTier(StrEnum):
    """How deep an engine sleeps, and so how long a request that needs it waits.

    ``HOT`` serves at once; ``PAUSED`` is frozen in memory; ``SNAPSHOT`` has no process and is restored from
    an image on disk; ``COLD`` has nothing and starts from the weights.
    """

    HOT = "hot"
    PAUSED = "paused"
    SNAPSHOT = "snapshot"
    COLD = "cold"
