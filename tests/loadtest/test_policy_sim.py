"""The simulation against traces that are small enough to reckon by hand."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstart.keepalive import FixedKeepAlive, HybridHistogram, KeepAlive, KeepAlivePolicy
from coldstart.tiers import SleepTier
from loadtest.policy_sim import TRACES, Engine, main, replay

DAY_S = 24 * 3600.0
# Whole numbers: sums are exact.
ENGINE = Engine(memory_gb=2, service_s=5, idle_pause_s=10, paused_wake_s=1, asleep_wake_s=3)
COLD = Engine(asleep_wake_s=30.0, asleep=SleepTier.COLD)


@dataclass
class Planned:
    """A policy that always has the same plan, and keeps what it is told."""

    plan: KeepAlive
    durations: list[float] = field(default_factory=list)

    def observe_idle(self, idle_s: float) -> None:
        self.durations.append(idle_s)

    def windows(self) -> KeepAlive:
        return self.plan


def found(outcome_found: dict[SleepTier, int]) -> tuple[int, ...]:
    return tuple(outcome_found[tier] for tier in SleepTier)


def test_memory_and_waits_by_hand() -> None:
    # 100: asleep, waits 3, ends 108. 101 joins the wake: waits 2, ends 108. 117: 9 s idle, hot, ends 122.
    # 132: 10 s idle, paused, waits 1, ends 138. 200: 62 s idle, asleep since 168, waits 3, ends 208.
    outcome = replay([100, 101, 117, 132, 200], FixedKeepAlive(30), ENGINE, 300)
    assert found(outcome.by_tier) == (1, 1, 3, 0)
    assert outcome.waits_s == [3, 2, 0, 1, 3]
    assert outcome.wait_s == 9
    assert outcome.wait_p99_s == 3
    # Awake from 100 to 168, and from 200 until 30 s after 208.
    assert outcome.memory_gb_s == 2 * (68 + 38)
    assert outcome.prewakes == 0


def test_an_engine_that_is_woken_before_the_request() -> None:
    policy = Planned(KeepAlive(50, 40, "histogram"))
    # 0: asleep, waits 3, ends 8. Awake 58 to 98: 60 finds it waking for 1 s more, ends 66.
    # Awake 116 to 156: 120 finds it hot, ends 125. Awake 175 to 215: 200 finds it paused, ends 206.
    # 210: sleeps again, waits 3, ends 218. Then awake 268 to 300.
    outcome = replay([0, 60, 120, 200, 210], policy, ENGINE, 300)
    assert outcome.waits_s == [3, 1, 0, 1, 3]
    assert found(outcome.by_tier) == (1, 1, 3, 0)
    assert outcome.prewakes == 4
    awake = 8 + (2 + 6) + (4 + 5) + (25 + 6) + 8 + 32
    assert outcome.memory_gb_s == 2 * awake
    assert policy.durations == [52, 54, 75, 4]


def test_a_request_during_another_ends_no_idle_time() -> None:
    policy = Planned(KeepAlive(0, 100, "fixed"))
    outcome = replay([10, 11, 15, 40], policy, ENGINE, 40)
    # 10 ends 18, 11 joins the wake, 15 ends 20; 40 finds it paused, ends 46.
    assert outcome.waits_s == [3, 2, 0, 1]
    assert found(outcome.by_tier) == (1, 1, 2, 0)
    assert policy.durations == [20]
    assert outcome.memory_gb_s == 2 * 36


def test_an_engine_that_nobody_asks_takes_nothing() -> None:
    outcome = replay([], HybridHistogram(), ENGINE, 1000)
    assert (outcome.memory_gb_s, outcome.wait_s, outcome.wait_p99_s) == (0, 0, 0)


def test_the_last_request_may_end_after_the_trace() -> None:
    assert replay([99], FixedKeepAlive(30), ENGINE, 100).memory_gb_s == 2 * 8


@given(
    st.lists(st.floats(0, 1e5), max_size=100),
    st.one_of(st.builds(FixedKeepAlive, st.sampled_from([0.0, 60.0])), st.builds(HybridHistogram)),
    st.sampled_from([ENGINE, COLD]),
)
def test_every_request_is_counted_once(times_s: list[float], policy: KeepAlivePolicy, engine: Engine) -> None:
    outcome = replay(sorted(times_s), policy, engine, 1e5)
    assert sum(outcome.by_tier.values()) == len(outcome.waits_s) == len(times_s)
    assert all(0 <= wait_s <= engine.asleep_wake_s + 1e-9 for wait_s in outcome.waits_s)
    latest = 1e5 + engine.asleep_wake_s + engine.service_s
    assert 0 <= outcome.memory_gb_s <= engine.memory_gb * latest * (1 + 1e-9)


@pytest.mark.parametrize("trace", ["periodic", "rare"])
@pytest.mark.parametrize("engine", [Engine(), COLD])
def test_the_hybrid_foresees_what_is_periodic(trace: str, engine: Engine) -> None:
    times_s = list(TRACES[trace](Random(5), 14 * DAY_S))
    hybrid = replay(times_s, HybridHistogram(), engine, 14 * DAY_S)
    fixed = replay(times_s, FixedKeepAlive(600), engine, 14 * DAY_S)
    assert fixed.by_tier[engine.asleep] == len(times_s)
    assert hybrid.by_tier[engine.asleep] < len(times_s) / 5
    assert hybrid.wait_s < fixed.wait_s / 5


@pytest.mark.parametrize("trace", TRACES)
def test_a_trace_is_ascending_and_the_seeds_own(trace: str) -> None:
    times_s = list(TRACES[trace](Random(1), 3 * DAY_S))
    assert times_s == sorted(times_s)
    assert 0 <= times_s[0] < times_s[-1] < 3 * DAY_S
    assert times_s == list(TRACES[trace](Random(1), 3 * DAY_S))
    assert times_s != list(TRACES[trace](Random(2), 3 * DAY_S))


def test_the_command_line_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "folder" / "policy.md"
    arguments = ["--days", "1", "--traces", "periodic", "rare", "--no-snapshots", "--write", str(file)]
    main(arguments)
    printed = capsys.readouterr().out
    written = file.read_text()
    assert printed in written
    assert f"python -m loadtest policy-sim {' '.join(arguments)}" in written
    lines = printed.splitlines()
    # A head, a rule, and two traces under three fixed policies and two hybrids.
    assert len(lines) == 2 + 2 * 5
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split("|")[-3:-1] == lines[7].split("|")[-3:-1]
    assert lines[2].split("|")[-2].strip() == "1.00"


@pytest.mark.parametrize(
    "arguments", [["--histograms", "60"], ["--histograms", "1/14400"], ["--fixed", "-1"], ["--days", "x"]]
)
def test_bad_arguments_end_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
