"""When a model's engines go to sleep, and when one is woken before it is asked for."""

import asyncio
import time
from collections.abc import Callable, Sequence

from coldstart.keepalive import KeepAlive, KeepAlivePolicy
from coldstart.tiers import SleepTier
from engines.pool.replica import Replica
from engines.spec import ModelSpec
from engines.status import EngineState

# To leave memory for less is not worth the wake.
_LEAST_ABSENCE_S = 30.0


class Idling:
    """Watches how long nobody has asked for a model. ``tick`` is called when something falls due.

    An idle engine is paused after ``idle_pause_s``. It leaves memory after ``idle_snapshot_s``, or when the
    policy says so, which may also name the time to wake it again.
    """

    def __init__(self, spec: ModelSpec, policy: KeepAlivePolicy, tick: Callable[[], None]) -> None:
        self._spec = spec
        self._policy = policy
        self._tick = tick
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        self._windows: KeepAlive | None = None
        self._prewake_at: float | None = None

    def on_request(self) -> None:
        """Somebody asked for the model."""
        if self._idle_since is not None:
            self._policy.observe_idle(time.monotonic() - self._idle_since)
        self._idle_since = self._windows = self._prewake_at = None

    def prewake_due(self) -> bool:
        """Whether the time has come to wake an engine that nobody has asked for; true once."""
        if self._prewake_at is None or time.monotonic() < self._prewake_at:
            return False
        self._prewake_at = None
        return True

    def settle(self, replicas: Sequence[Replica], *, can_leave: bool) -> None:
        """Put to sleep what has been idle for long enough, and set the timer for what comes next."""
        self.cancel()
        now = time.monotonic()
        if any(replica.leases for replica in replicas):
            self._idle_since = None
        elif self._idle_since is None and replicas:
            self._idle_since = now
            self._windows = None
        due = [] if self._prewake_at is None else [self._prewake_at]
        hot = sum(replica.state is EngineState.READY for replica in replicas)
        staying = sum(replica.state is not EngineState.DRAINING for replica in replicas)
        extra = staying - max(1, self._spec.min_hot)
        for replica in sorted(replicas, key=lambda replica: replica.idle_since):
            if not replica.idle or replica.pinned:
                continue
            ready = replica.state is EngineState.READY
            if ready and hot <= self._spec.min_hot:
                continue
            leave_at = self._leave_at(replica, extra) if can_leave else float("inf")
            pause_at = replica.idle_since + self._spec.idle_pause_s if ready else float("inf")
            if now >= leave_at:
                extra -= 1
                hot -= ready
                self._plan_prewake()
                replica.rest(SleepTier.SNAPSHOT)
            elif now >= pause_at:
                hot -= 1
                replica.rest(SleepTier.PAUSED)
                due.append(leave_at)
            else:
                due.append(min(leave_at, pause_at))
        due = [moment for moment in due if moment < float("inf")]
        if due:
            delay_s = max(0.0, min(due) - now)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _leave_at(self, replica: Replica, extra: int) -> float:
        if extra > 0:
            return replica.idle_since + self._spec.idle_pause_s
        if self._spec.idle_snapshot_s is not None:
            return replica.idle_since + self._spec.idle_snapshot_s
        windows = self._current()
        absence_s = windows.prewake_after_s - self._spec.idle_pause_s
        prewoken = self._idle_since is None or replica.idle_since > self._idle_since
        if absence_s > _LEAST_ABSENCE_S and not prewoken:
            return replica.idle_since + self._spec.idle_pause_s
        return replica.idle_since + max(self._spec.idle_pause_s, windows.keep_alive_s)

    def _plan_prewake(self) -> None:
        if self._spec.idle_snapshot_s is not None or self._idle_since is None:
            return
        windows = self._current()
        at = self._idle_since + windows.prewake_after_s
        if windows.prewake_after_s > 0 and at > time.monotonic():
            self._prewake_at = at

    def _current(self) -> KeepAlive:
        if self._windows is None:
            self._windows = self._policy.windows()
        return self._windows

    def cancel(self) -> None:
        """No tick any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
