"""Arrival times of requests, seconds from the start, ascending. The same seed gives the same times."""

import math
from collections.abc import Iterator
from random import Random

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


def poisson(random: Random, duration_s: float, mean_s: float = 600.0) -> Iterator[float]:
    """Without memory: gaps are exponential, ``mean_s`` on average."""
    at = random.expovariate(1 / mean_s)
    while at < duration_s:
        yield at
        at += random.expovariate(1 / mean_s)


def diurnal(random: Random, duration_s: float, peak_mean_s: float = 60.0) -> Iterator[float]:
    """Busy at noon, a gap of ``peak_mean_s`` on average, and silent at midnight: a thinned `poisson`."""
    for at in poisson(random, duration_s, peak_mean_s):
        share = (1 - math.cos(2 * math.pi * at / DAY_S)) / 2
        if random.random() < share**2:
            yield at


def bursty(random: Random, duration_s: float, between_s: float = 2 * HOUR_S) -> Iterator[float]:
    """Sessions of 5 to 30 requests, 15 s apart on average, that begin ``between_s`` apart on average.

    A session that would begin while another lasts begins after it.
    """
    at = random.expovariate(1 / between_s)
    while at < duration_s:
        for _ in range(random.randint(5, 30)):
            if at < duration_s:
                yield at
            at += random.expovariate(1 / 15)
        at += random.expovariate(1 / between_s)


def periodic(
    random: Random, duration_s: float, period_s: float = HOUR_S, jitter_s: float = 60.0
) -> Iterator[float]:
    """One request a period, up to ``jitter_s`` early or late."""
    count = int(duration_s // period_s)
    yield from (
        at
        for number in range(1, count + 1)
        if (at := number * period_s + random.uniform(-jitter_s, jitter_s)) < duration_s
    )


def rare(random: Random, duration_s: float, period_s: float = 6 * HOUR_S) -> Iterator[float]:
    """`periodic` with a period beyond the range of a histogram of four hours."""
    return periodic(random, duration_s, period_s, jitter_s=300.0)
