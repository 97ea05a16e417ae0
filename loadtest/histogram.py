"""A histogram of durations with constant relative precision, after Gil Tene's HdrHistogram.

Values below 2,048 ns have a bucket each; above, each doubling of the value is cut into 1,024 buckets, so
a percentile is off by at most 0.1 %. Recording is an index and an addition, whatever the value.
"""

from array import array
from collections.abc import Iterator
from typing import Self

_HALF_BITS = 10
_HALF = 1 << _HALF_BITS
_LARGEST = 1 << 42  # 73 minutes
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def _index(value: int) -> int:
    shift = max(0, value.bit_length() - _HALF_BITS - 1)
    return (shift << _HALF_BITS) + (value >> shift)


def _highest(index: int) -> int:
    """The largest value that the bucket holds."""
    if index < 2 * _HALF:
        return index
    shift = (index >> _HALF_BITS) - 1
    return (((index & (_HALF - 1)) + _HALF + 1) << shift) - 1


class Histogram:
    """Counts of durations, in nanoseconds."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * (_index(_LARGEST) + 1)))
        self.count = 0
        self.total = 0
        self.largest = 0

    def record(self, value: int, times: int = 1) -> None:
        """Count a duration; a negative one as 0, one beyond 73 minutes as that."""
        value = 0 if value < 0 else min(value, _LARGEST)
        shift = value.bit_length() - _HALF_BITS - 1
        if shift < 0:
            shift = 0
        self._counts[(shift << _HALF_BITS) + (value >> shift)] += times
        self.count += times
        self.total += value * times
        if value > self.largest:
            self.largest = value

    def add(self, other: Self) -> None:
        """Count everything that the other has counted."""
        for index, times in other._filled():
            self._counts[index] += times
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    def percentile(self, share: float) -> int:
        """The duration that ``share`` percent do not exceed, in nanoseconds; 0 where nothing was counted."""
        rank = max(1, -int(-self.count * share // 100))
        seen = 0
        for index, times in self._filled():
            seen += times
            if seen >= rank:
                return min(_highest(index), self.largest)
        return 0

    @property
    def mean(self) -> float:
        """In nanoseconds; 0 where nothing was counted."""
        return self.total / self.count if self.count else 0.0

    def summary(self) -> dict[str, float]:
        """Count, and milliseconds: mean, percentiles and maximum."""
        result: dict[str, float] = {"count": self.count, "mean_ms": round(self.mean / 1e6, 4)}
        for share in PERCENTILES:
            result[f"p{share:g}_ms"] = round(self.percentile(share) / 1e6, 4)
        return {**result, "max_ms": round(self.largest / 1e6, 4)}

    def _filled(self) -> Iterator[tuple[int, int]]:
        return ((index, times) for index, times in enumerate(self._counts) if times)
