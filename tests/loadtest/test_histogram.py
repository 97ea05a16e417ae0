"""Percentiles of the log-bucket histogram, held against sorting."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.histogram import PERCENTILES, Histogram

_DURATIONS = st.lists(st.integers(0, 10**12), min_size=1, max_size=200)


def _filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(_DURATIONS, st.sampled_from(PERCENTILES))
def test_a_percentile_is_that_of_the_sorted_values_within_a_thousandth(
    values: list[int], share: float
) -> None:
    exact = sorted(values)[max(1, -int(-len(values) * share // 100)) - 1]
    answer = _filled(values).percentile(share)
    assert exact <= answer <= exact * 1.001 + 1


@given(_DURATIONS, _DURATIONS)
def test_two_together_are_as_one(first: list[int], second: list[int]) -> None:
    together = _filled(first)
    together.add(_filled(second))
    assert together.summary() == _filled(first + second).summary()


def test_what_is_out_of_range_is_kept_at_its_end() -> None:
    histogram = _filled([-5, 10**18])
    assert histogram.percentile(1) == 0
    assert histogram.largest == histogram.percentile(100)
    assert histogram.count == 2


def test_nothing_counted_is_zero() -> None:
    assert Histogram().percentile(99) == 0
    assert Histogram().mean == 0.0


def test_several_of_the_same_value() -> None:
    histogram = Histogram()
    histogram.record(7, 3)
    assert (histogram.count, histogram.mean) == (3, 7.0)


@pytest.mark.parametrize("size", [10, 100_000])
def test_the_summary_is_in_milliseconds(size: int) -> None:
    chance = random.Random(size)
    values = [chance.randrange(10**6, 2 * 10**6) for _ in range(size)]
    summary = _filled(values).summary()
    assert summary["count"] == size
    assert 1 <= summary["p50_ms"] <= summary["p99_ms"] <= summary["max_ms"] <= 2
