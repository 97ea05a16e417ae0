"""When a model's idle engines go to sleep, and when one is woken before a request asks for it.

`plan_sleep` decides, and changes nothing; `IdleTimer` keeps what it decides on, and the timer.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coldstart.keepalive import KeepAlive, KeepAlivePolicy
from coldstart.tiers import SleepTier
from engines.pool.decisions import Rest
from engines.pool.replica_state import ReplicaState
from engines.spec import ModelSpec
from engines.status import EngineState

_LEAST_ABSENCE_S = 30.0
"""A shorter absence from memory would not repay the wake."""
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class SleepPlan:
    """Which replicas rest now, when to wake one again without a request, and when to plan next.

    Seconds of CLOCK_MONOTONIC, None for never. A rest other than a pause leaves memory.
    """

    rests: tuple[Rest, ...]
    prewake_at: float | None
    next_at: float | None


def plan_sleep(
    replicas: Sequence[ReplicaState],
    spec: ModelSpec,
    windows: KeepAlive,
    *,
    idle_since: float | None,
    prewake_at: float | None,
    can_leave: bool,
    now: float,
) -> SleepPlan:
    """What the idle replicas do, the one that has been idle for the longest first.

    An engine is paused after the model's ``idle_pause_s``. It leaves memory after ``idle_snapshot_s``, or
    when ``windows`` say so. Engines beyond the first, and beyond ``min_hot``, leave instead of being paused.
    ``idle_since``: when the last request of the model ended, None if one runs. ``can_leave``: whether there
    is a snapshot to come back from.
    """
    hot = sum(replica.state is EngineState.READY for replica in replicas)
    extra = sum(replica.state is not EngineState.DRAINING for replica in replicas) - max(1, spec.min_hot)
    rests = []
    due = []
    for replica in sorted(replicas, key=lambda replica: replica.idle_since):
        if not replica.idle:
            continue
        ready = replica.state is EngineState.READY
        if ready and hot <= spec.min_hot:
            continue
        leave_at = _NEVER
        if can_leave:
            leave_at = _leave_at(replica, spec, windows, idle_since=idle_since, extra=extra > 0)
        pause_at = replica.idle_since + spec.idle_pause_s if ready else _NEVER
        if now >= leave_at:
            extra -= 1
            hot -= ready
            prewake_at = _prewake_at(spec, windows, idle_since, now) or prewake_at
            rests.append(Rest(replica.number, SleepTier.SNAPSHOT))
        elif now >= pause_at:
            hot -= 1
            rests.append(Rest(replica.number, SleepTier.PAUSED))
            due.append(leave_at)
        else:
            due.append(min(leave_at, pause_at))
    if prewake_at is not None:
        due.append(prewake_at)
    next_at = min(due, default=_NEVER)
    return SleepPlan(tuple(rests), prewake_at, next_at if next_at < _NEVER else None)


def _leave_at(
    replica: ReplicaState, spec: ModelSpec, windows: KeepAlive, *, idle_since: float | None, extra: bool
) -> float:
    if extra:
        return replica.idle_since + spec.idle_pause_s
    if spec.idle_snapshot_s is not None:
        return replica.idle_since + spec.idle_snapshot_s
    absence_s = windows.prewake_after_s - spec.idle_pause_s
    prewoken = idle_since is None or replica.idle_since > idle_since
    if absence_s > _LEAST_ABSENCE_S and not prewoken:
        return replica.idle_since + spec.idle_pause_s
    return replica.idle_since + max(spec.idle_pause_s, windows.keep_alive_s)


def _prewake_at(spec: ModelSpec, windows: KeepAlive, idle_since: float | None, now: float) -> float | None:
    if spec.idle_snapshot_s is not None or idle_since is None or windows.prewake_after_s <= 0:
        return None
    at = idle_since + windows.prewake_after_s
    return at if at > now else None


class IdleTimer:
    """Since when a model has been idle. ``on_due`` is called when a plan falls due."""

    def __init__(self, spec: ModelSpec, policy: KeepAlivePolicy, on_due: Callable[[], None]) -> None:
        self._spec = spec
        self._policy = policy
        self._on_due = on_due
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        self._windows: KeepAlive | None = None
        self._prewake_at: float | None = None

    def on_request(self) -> None:
        """End the idle time: a request asks for the model."""
        if self._idle_since is not None:
            self._policy.observe_idle(time.monotonic() - self._idle_since)
        self._idle_since = self._windows = self._prewake_at = None

    def prewake_due(self) -> bool:
        """Whether the time has come to wake an engine without a request; true once."""
        if self._prewake_at is None or time.monotonic() < self._prewake_at:
            return False
        self._prewake_at = None
        return True

    def plan(self, replicas: Sequence[ReplicaState], *, can_leave: bool) -> tuple[Rest, ...]:
        """Which replicas rest now. Sets the timer for the next plan."""
        self.cancel()
        now = time.monotonic()
        if any(replica.leases for replica in replicas):
            self._idle_since = None
        elif self._idle_since is None and replicas:
            self._idle_since, self._windows = now, None
        if any(replica.idle for replica in replicas):
            if self._windows is None:
                self._windows = self._policy.windows()
            plan = plan_sleep(
                replicas,
                self._spec,
                self._windows,
                idle_since=self._idle_since,
                prewake_at=self._prewake_at,
                can_leave=can_leave,
                now=now,
            )
        else:
            plan = SleepPlan((), self._prewake_at, self._prewake_at)
        self._prewake_at = plan.prewake_at
        if plan.next_at is not None:
            delay_s = max(0.0, plan.next_at - now)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_due)
        return plan.rests

    def cancel(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
