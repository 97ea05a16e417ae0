"""The keep-alive policy against computations of what it promises that are slow and plain."""

import json
import math
from collections import Counter
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstart.keepalive import (
    FixedKeepAlive,
    HistogramSettings,
    HybridHistogram,
    KeepAlive,
    KeepAlivePolicy,
)

MINUTE_S = 60.0
HOUR_S = 3600.0
STANDARD = KeepAlive(0.0, 600.0, "fixed")
RANGE_S = HistogramSettings().range_s

in_range = st.floats(0, RANGE_S, exclude_max=True)
idle_times = st.lists(st.one_of(in_range, st.floats(0, 1e9), st.integers(0, 20_000)), max_size=200)


def learned(*idle_s: float, settings: HistogramSettings | None = None) -> HybridHistogram:
    policy = HybridHistogram(settings)
    for item in idle_s:
        policy.observe_idle(item)
    return policy


def assert_about(plan: KeepAlive, prewake_after_s: float, keep_alive_s: float, source: str) -> None:
    assert plan.source == source
    assert (plan.prewake_after_s, plan.keep_alive_s) == pytest.approx((prewake_after_s, keep_alive_s))


def nearest_rank(values: list[float], percent: int) -> float:
    """The smallest value that at least so many per cent of the values do not exceed."""
    return next(
        value for value in sorted(values) if sum(v <= value for v in values) * 100 >= percent * len(values)
    )


@given(st.lists(in_range, min_size=1, max_size=120), st.sampled_from([60.0, 5.0, 0.7, 333.3]))
def test_head_and_tail_are_the_percentiles_rounded_to_their_bins(idle_s: list[float], bin_s: float) -> None:
    settings = HistogramSettings(bin_s=bin_s, remember=10_000)
    head_s, tail_s = learned(*idle_s, settings=settings).head_and_tail()
    assert head_s == int(nearest_rank(idle_s, 5) / bin_s) * bin_s
    assert tail_s == min((int(nearest_rank(idle_s, 99) / bin_s) + 1) * bin_s, RANGE_S)


@given(st.lists(st.floats(0, 300, exclude_max=True), max_size=60))
def test_the_variation_is_that_of_the_counts_of_what_is_remembered(idle_s: list[float]) -> None:
    settings = HistogramSettings(bin_s=10.0, range_s=200.0, remember=20)
    counts = Counter(int(item / 10) for item in idle_s[-20:] if item < 200)
    each = [counts[position] for position in range(20)]
    expected = pstdev(each) / fmean(each) if any(each) else 0.0
    assert learned(*idle_s, settings=settings).variation == pytest.approx(expected, abs=1e-6)


def test_a_narrow_histogram_gives_the_windows_with_their_margins() -> None:
    idle_s = [30 * MINUTE_S + second for second in range(50)]
    plan = learned(*idle_s).windows()
    assert plan.source == "histogram"
    assert plan.prewake_after_s == pytest.approx(0.9 * 30 * MINUTE_S)
    assert plan.prewake_after_s + plan.keep_alive_s == pytest.approx(1.1 * 31 * MINUTE_S)


def test_frequent_requests_keep_the_engine_awake_to_the_tail() -> None:
    plan = learned(*[20.0] * 90, *[130.0] * 10).windows()
    assert_about(plan, 0.0, 1.1 * 180, "histogram")


def test_a_sleep_that_would_be_too_short_is_none() -> None:
    idle_s = [20.0] * 50
    settings = HistogramSettings(bin_s=5.0, range_s=600.0)
    assert learned(*idle_s, settings=settings).windows().prewake_after_s == 0
    patient = HistogramSettings(bin_s=5.0, range_s=600.0, least_sleep_s=18.0)
    assert_about(learned(*idle_s, settings=patient).windows(), 18.0, 1.1 * 25 - 18, "histogram")


def test_few_samples_say_nothing() -> None:
    assert HybridHistogram().windows() == STANDARD
    assert learned(*[1800.0] * 9).windows() == STANDARD
    assert learned(*[1800.0] * 10).windows().source == "histogram"


def test_a_flat_histogram_says_nothing() -> None:
    flat = learned(*(bin_ * MINUTE_S for bin_ in range(240)))
    assert flat.variation == pytest.approx(0, abs=1e-6)
    assert flat.windows() == STANDARD
    # One of 240 bins in use in five: sqrt(5 - 1).
    edge = learned(*(bin_ * MINUTE_S for bin_ in range(0, 240, 5)))
    assert edge.variation == pytest.approx(2)
    assert learned(*(bin_ * MINUTE_S for bin_ in range(0, 240, 4))).windows() == STANDARD
    assert learned(*(bin_ * MINUTE_S for bin_ in range(0, 240, 6))).windows().source == "histogram"


def test_out_of_range_idle_times_are_no_matter_up_to_half() -> None:
    half = learned(*[1800.0] * 20, *[5 * HOUR_S] * 20)
    assert half.windows().source == "histogram"
    assert half.head_and_tail() == (1800.0, 1860.0)
    half.observe_idle(5 * HOUR_S)
    assert half.windows().source == "forecast"
    half.observe_idle(1800.0)
    assert half.windows().source == "histogram"


def test_the_range_itself_is_out_of_range() -> None:
    assert learned(*[math.nextafter(RANGE_S, 0)] * 10).windows().source == "histogram"
    assert learned(*[RANGE_S] * 10).windows().source == "forecast"


def test_a_steady_rare_period_is_foreseen_with_a_margin_of_15_percent() -> None:
    plan = learned(*[5 * HOUR_S] * 3).windows()
    assert_about(plan, 4.25 * HOUR_S, 1.5 * HOUR_S, "forecast")
    assert learned(*[5 * HOUR_S] * 2).windows() == STANDARD


def test_the_forecast_widens_with_the_deviation_until_there_is_none() -> None:
    some = learned(5 * HOUR_S, 6 * HOUR_S, 7 * HOUR_S).windows()
    assert some.prewake_after_s == pytest.approx(0.85 * 5 * HOUR_S)
    assert some.prewake_after_s + some.keep_alive_s == pytest.approx(1.15 * 7 * HOUR_S)
    assert learned(5 * HOUR_S, 30 * HOUR_S, 90 * HOUR_S).windows() == STANDARD


def test_the_forecast_follows_the_last_eight() -> None:
    plan = learned(*[40 * HOUR_S] * 20, *[10 * HOUR_S] * 8).windows()
    assert plan.prewake_after_s == pytest.approx(8.5 * HOUR_S)


@given(
    st.sampled_from([0.5, 1, 3, 6, 24, 100]),
    st.lists(st.floats(-0.02, 0.02), min_size=30, max_size=60),
)
def test_a_rare_periodic_request_finds_the_engine_awake(period_h: float, jitter: list[float]) -> None:
    policy = HybridHistogram()
    for number, share in enumerate(jitter):
        idle_s = period_h * HOUR_S * (1 + share)
        if number >= 20:
            plan = policy.windows()
            assert plan.source == ("histogram" if period_h < 4 else "forecast")
            assert 0 < plan.prewake_after_s < idle_s < plan.prewake_after_s + plan.keep_alive_s
        policy.observe_idle(idle_s)


@given(idle_times)
def test_windows_can_always_be_kept(idle_s: list[float]) -> None:
    plan = learned(*idle_s).windows()
    assert 0 <= plan.prewake_after_s < math.inf
    assert 0 < plan.keep_alive_s < math.inf
    assert learned(*idle_s).windows() == plan


def test_the_oldest_idle_times_are_forgotten() -> None:
    settings = HistogramSettings(remember=48)
    policy = learned(*[7200.0] * 500, *[300.0] * 48, settings=settings)
    assert policy.head_and_tail() == (300.0, 360.0)
    assert len(policy.to_state()["idle_s"]) == 48


@given(idle_times, idle_times)
def test_the_state_survives_json(before: list[float], after: list[float]) -> None:
    policy = learned(*before)
    restored = HybridHistogram.from_state(json.loads(json.dumps(policy.to_state())))
    for idle_s in after:
        policy.observe_idle(idle_s)
        restored.observe_idle(idle_s)
    assert restored.to_state() == policy.to_state()
    assert restored.windows() == policy.windows()


def test_the_state_holds_under_other_settings() -> None:
    state = learned(*range(100, 200)).to_state()
    settings = HistogramSettings(bin_s=5.0, range_s=240.0, remember=60)
    restored = HybridHistogram.from_state(state, settings)
    assert restored.to_state()["idle_s"] == list(range(140, 200))
    assert restored.head_and_tail() == (140.0, 200.0)


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {},
        {"version": 1},
        {"version": 2, "idle_s": []},
        {"version": 1, "idle_s": [], "more": 1},
        {"version": 1, "idle_s": {}},
        {"version": 1, "idle_s": "1"},
        {"version": 1, "idle_s": [1, "2"]},
        {"version": 1, "idle_s": [None]},
        {"version": 1, "idle_s": [True]},
        {"version": 1, "idle_s": [-1]},
        {"version": 1, "idle_s": [math.nan]},
        {"version": 1, "idle_s": [math.inf]},
        {"version": 1, "idle_s": [10**400]},
    ],
)
def test_a_bad_state_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match=r"keep-alive state|an idle time"):
        HybridHistogram.from_state(state)


@pytest.mark.parametrize("policy", [HybridHistogram(), FixedKeepAlive(60.0)])
@pytest.mark.parametrize("idle_s", [-0.001, math.nan, math.inf, 1e10, True, "1"])
def test_what_is_no_idle_time_is_refused(policy: KeepAlivePolicy, idle_s: Any) -> None:
    before = policy.windows()
    with pytest.raises(ValueError, match="an idle time"):
        policy.observe_idle(idle_s)
    assert policy.windows() == before


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bin_s": 0.0}, "bin_s"),
        ({"bin_s": math.nan}, "bin_s"),
        ({"bin_s": 1e-320}, "bin_s"),
        ({"range_s": 59.0}, "bin_s"),
        ({"range_s": math.inf}, "range_s"),
        ({"range_s": 240.0}, "4 bins"),
        ({"bin_s": 1.0}, "2880"),
        ({"standard_keep_alive_s": -1.0}, "standard_keep_alive_s"),
        ({"standard_keep_alive_s": math.inf}, "standard_keep_alive_s"),
        ({"min_samples": 0}, "min_samples"),
        ({"remember": 9}, "remember"),
        ({"head_percent": 0}, "head_percent"),
        ({"tail_percent": 101}, "tail_percent"),
        ({"margin": 1.0}, "margin"),
        ({"max_out_of_range": -0.1}, "max_out_of_range"),
        ({"forecast_margin": math.nan}, "forecast_margin"),
        ({"min_variation": -1.0}, "min_variation"),
        ({"min_variation": 1e300}, "min_variation"),
        ({"least_sleep_s": math.nan}, "least_sleep_s"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        HistogramSettings(**settings)


def test_a_fixed_keep_alive_learns_nothing() -> None:
    policy = FixedKeepAlive(60.0)
    for idle_s in [1.0, 3000.0, 3000.0]:
        policy.observe_idle(idle_s)
    assert policy.windows() == KeepAlive(0.0, 60.0, "fixed")
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="keep_alive_s"):
            FixedKeepAlive(bad)
