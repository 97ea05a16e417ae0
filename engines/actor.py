"""The single writer of one engine's state.

Everybody who wants something of the engine posts it here, and one task does it, one thing after another. What
takes time (starting, watching, stopping) runs beside it in tasks that post their outcome.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from coldstart.tiers import SleepTier
from engines.engine import Engine
from engines.errors import EngineUnavailable, HostClosing
from engines.policy import HostPolicy
from engines.process import EngineStartFailed
from engines.spec import ModelSpec
from engines.status import EngineLease, EngineState, EngineStatus, Wake
from engines.waiting import Waiter, fail

_KEPT_WAKES = 20
_UNKNOWN_START_S = 5.0
# Measuring 3 GB takes the kernel 50 ms.
_CHECKS_PER_MEASUREMENT = 6
_logger = logging.getLogger("torpor.engine")


class EngineActor:
    """Owns the state of one local engine. `run` is its task; `post` and `status` belong to everybody."""

    def __init__(self, spec: ModelSpec, make: Callable[[], Engine], policy: HostPolicy) -> None:
        self.spec = spec
        self._make = make
        self._policy = policy
        self._inbox: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        self._state = EngineState.COLD
        self._engine: Engine | None = None
        self._engines: set[Engine] = set()  # every one that has not been stopped yet
        self._leases: set[EngineLease] = set()
        self._waiters: dict[Waiter, None] = {}  # in the order of their coming
        self._sleepers: list[asyncio.Future[EngineStatus]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: list[asyncio.Task[None]] = []
        self._drain_timer: asyncio.TimerHandle | None = None
        self._suspected = False  # somebody saw it fail, and it is being asked whether it is well
        self._stopping = False
        self._closing = False
        self._failure: str | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._start_began = 0.0
        self._ready_at: tuple[float, float] | None = None  # monotonic, unix
        self._memory = 0
        self._wakes: deque[Wake] = deque(maxlen=_KEPT_WAKES)

    # -- what callers may do ------------------------------------------------------------------------------

    def status(self) -> EngineStatus:
        """The engine as it is now."""
        hot = self._state in (EngineState.READY, EngineState.DRAINING)
        return EngineStatus(
            id=self.spec.id,
            state=self._state,
            tier=SleepTier.HOT if hot else SleepTier.COLD,
            memory_bytes=self._memory,
            in_flight=len(self._leases),
            started_at=self._ready_at[1] if self._ready_at else None,
            failure=self._failure,
            wakes=tuple(self._wakes),
        )

    def expected_start_s(self) -> float:
        """How long it probably takes until the engine is awake."""
        if not self._wakes:
            return _UNKNOWN_START_S
        elapsed = time.monotonic() - self._start_began if self._state is EngineState.STARTING else 0.0
        return min(60.0, max(1.0, self._wakes[-1].ms["total"] / 1000 - elapsed))

    def ask(self, *, lease: bool) -> asyncio.Future[EngineLease | None]:
        """Want the engine awake. The future fails with `EngineUnavailable`; cancel it to want no more."""
        waiter = Waiter(asyncio.get_running_loop().create_future(), lease, time.monotonic())
        self._post(lambda: self._on_ask(waiter))
        return waiter.result

    def give_back(self, lease: EngineLease) -> None:
        """A lease has ended."""
        self._post(lambda: self._on_given_back(lease))

    def suspect(self, lease: EngineLease) -> None:
        """A request saw the engine fail: nobody gets another lease until it is known whether it is well."""
        self._post(lambda: self._on_suspected(lease))

    def sleep(self) -> asyncio.Future[EngineStatus]:
        """Let the requests end that run, then stop the engine."""
        done: asyncio.Future[EngineStatus] = asyncio.get_running_loop().create_future()
        self._post(lambda: self._on_sleep(done))
        return done

    def close(self) -> None:
        """End the engine and then `run`."""
        self._post(self._on_close)

    def _post(self, handle: Callable[[], None]) -> None:
        self._inbox.put_nowait(handle)

    # -- the actor's task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what is asked until `close`."""
        try:
            while not self._closing:
                (await self._inbox.get())()
        finally:
            self._closing = True
            await self._shut_down()

    async def _shut_down(self) -> None:
        while not self._inbox.empty():
            self._inbox.get_nowait()()
        for waiter in self._waiters:
            fail(waiter.result, HostClosing())
        for sleeper in self._sleepers:
            fail(sleeper, HostClosing())
        self._unwatch()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._discard(e, self._policy.stop_grace_s) for e in self._engines))
        self._dismiss()
        self._set(EngineState.COLD)

    def _on_close(self) -> None:
        self._closing = True

    def _on_ask(self, waiter: Waiter) -> None:
        if self._closing:
            fail(waiter.result, HostClosing())
        elif self._state is EngineState.READY and not self._suspected:
            waiter.found = SleepTier.HOT
            self._grant(waiter)
        elif self._state is EngineState.FAILED and (wait_s := self._retry_at - time.monotonic()) > 0:
            fail(waiter.result, self._unavailable(wait_s))
        else:
            self._waiters[waiter] = None
            waiter.result.add_done_callback(lambda _: self._post(lambda: self._on_answered(waiter)))
            if self._state in (EngineState.COLD, EngineState.FAILED):
                self._start()

    def _on_answered(self, waiter: Waiter) -> None:
        """The waiter has been served or has gone away."""
        self._waiters.pop(waiter, None)

    def _grant(self, waiter: Waiter) -> None:
        if waiter.result.done() or self._engine is None:
            return
        if not waiter.wants_lease:
            waiter.result.set_result(None)
            return
        hot = waiter.found is SleepTier.HOT
        wake_s = 0.0 if hot else time.monotonic() - waiter.asked_at
        lease = EngineLease(self.spec.id, self._engine.address, waiter.found, wake_s)
        self._leases.add(lease)
        waiter.result.set_result(lease)

    def _on_given_back(self, lease: EngineLease) -> None:
        self._leases.discard(lease)
        if self._state is EngineState.DRAINING and not self._leases:
            self._stop()

    # -- starting -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._set(EngineState.STARTING)
        self._start_began = time.monotonic()
        engine = self._make()
        self._engines.add(engine)
        self._spawn(self._bring_up(engine))

    async def _bring_up(self, engine: Engine) -> None:
        limit_s = self.spec.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await engine.start()
        except EngineStartFailed as error:
            failure = str(error)
        except TimeoutError:
            failure = f"the engine did not answer within {limit_s:g} s\n{engine.last_words()}"
        except Exception as error:
            # The outermost boundary of this task: the state must not stay 'starting' for ever.
            _logger.exception("%s: the start failed", self.spec.id)
            failure = f"the engine could not be started: {error}"
        else:
            self._post(lambda: self._on_started(engine))
            return
        await self._discard(engine)
        self._post(lambda: self._on_start_failed(failure))

    def _on_started(self, engine: Engine) -> None:
        if self._closing:
            return
        now = time.monotonic()
        total_s = now - self._start_began
        self._engine = engine
        self._ready_at = (now, time.time())
        self._failure = None
        self._wakes.append(Wake(self._ready_at[1], SleepTier.COLD, {"total": total_s * 1000}))
        self._set(EngineState.READY, f"after {total_s:.1f} s")
        self._watches = [self._spawn(self._watch_end(engine)), self._spawn(self._watch_health(engine))]
        for waiter in self._waiters:
            self._grant(waiter)
        if self._sleepers:
            self._drain()

    def _on_start_failed(self, failure: str) -> None:
        if self._closing:
            return
        self._fall(failure, self._backoff_s(self._failures))
        self._failures += 1
        wait_s = max(0.0, self._retry_at - time.monotonic())
        for waiter in self._waiters:
            fail(waiter.result, self._unavailable(wait_s))
        self._wake_sleepers()

    def _backoff_s(self, failures: int) -> float:
        return min(self._policy.backoff_max_s, self._policy.backoff_s * 2.0 ** min(failures, 30))

    def _unavailable(self, wait_s: float) -> EngineUnavailable:
        return EngineUnavailable(f"the engine of model {self.spec.id} failed to start", max(0.1, wait_s))

    # -- watching -----------------------------------------------------------------------------------------

    async def _watch_end(self, engine: Engine) -> None:
        how = await engine.ended()
        self._post(lambda: self._on_broken(engine, how))

    async def _watch_health(self, engine: Engine) -> None:
        failures = 0
        for turn in itertools.count():
            if failures == self._policy.health_failures:
                break
            if turn % _CHECKS_PER_MEASUREMENT == 0:
                memory = await asyncio.to_thread(engine.memory_bytes)
                self._post(lambda memory=memory: self._on_measured(engine, memory))  # type: ignore[misc]
            await asyncio.sleep(self._policy.health_interval_s)
            failures = 0 if await engine.healthy() else failures + 1
        self._post(lambda: self._on_broken(engine, "the engine does not answer its health check"))

    def _on_suspected(self, lease: EngineLease) -> None:
        if lease in self._leases and self._engine is not None and not self._suspected and not self._stopping:
            self._suspected = True
            self._spawn(self._examine(self._engine))

    async def _examine(self, engine: Engine) -> None:
        if await engine.healthy():
            self._post(lambda: self._on_found_well(engine))
        else:
            self._post(lambda: self._on_broken(engine, "the engine failed a request and its health check"))

    def _on_found_well(self, engine: Engine) -> None:
        if engine is not self._engine:
            return
        self._suspected = False
        if self._state is EngineState.READY:
            for waiter in self._waiters:
                waiter.found = SleepTier.HOT
                self._grant(waiter)

    def _on_measured(self, engine: Engine, memory: int) -> None:
        if engine is self._engine:
            self._memory = memory

    def _on_broken(self, engine: Engine, how: str) -> None:
        """The engine has ended by itself, or must be considered dead. Its leases lead nowhere now."""
        if engine is not self._engine or self._closing or self._stopping:
            return
        draining = self._state is EngineState.DRAINING
        uptime_s = time.monotonic() - self._ready_at[0] if self._ready_at else 0.0
        if uptime_s >= self._policy.stable_s:
            self._failures = 0
        self._dismiss()
        self._spawn(self._discard(engine))
        delay_s = self._backoff_s(self._failures - 1) if self._failures else 0.0
        self._failures += 1
        self._fall(f"{how}\n{engine.last_words()}", delay_s)
        if draining:
            self._rest()
        elif delay_s > 0:
            for waiter in self._waiters:
                fail(waiter.result, self._unavailable(delay_s))
        elif any(not waiter.result.done() for waiter in self._waiters):
            self._start()

    def _fall(self, failure: str, delay_s: float) -> None:
        self._failure = failure
        self._retry_at = time.monotonic() + delay_s
        self._set(EngineState.FAILED, failure.partition("\n")[0], level=logging.ERROR)

    # -- sleeping -----------------------------------------------------------------------------------------

    def _on_sleep(self, done: asyncio.Future[EngineStatus]) -> None:
        if self._closing:
            fail(done, HostClosing())
            return
        self._sleepers.append(done)
        if self._state in (EngineState.COLD, EngineState.FAILED):
            self._failures = 0
            self._failure = None
            self._rest()
        elif self._state is EngineState.READY:
            self._drain()
        # While it starts, those who wait are served first; while it drains, there is nothing more to do.

    def _drain(self) -> None:
        self._set(EngineState.DRAINING)
        engine = self._engine
        if not self._leases:
            self._stop()
            return
        self._drain_timer = asyncio.get_running_loop().call_later(
            self._policy.drain_timeout_s, lambda: self._post(lambda: self._on_drained_enough(engine))
        )

    def _on_drained_enough(self, engine: Engine | None) -> None:
        if engine is self._engine and self._state is EngineState.DRAINING:
            _logger.warning("%s: %d requests are cut off by the stop", self.spec.id, len(self._leases))
            self._stop()

    def _stop(self) -> None:
        if self._engine is not None and not self._stopping:
            self._stopping = True
            self._unwatch()
            self._spawn(self._bring_down(self._engine))

    async def _bring_down(self, engine: Engine) -> None:
        await self._discard(engine, self._policy.stop_grace_s)
        self._post(self._on_stopped)

    def _on_stopped(self) -> None:
        self._stopping = False
        self._failures = 0
        self._dismiss()
        self._rest()

    def _rest(self) -> None:
        """Nothing runs any more: tell who asked for that, then start again for those who came meanwhile."""
        self._set(EngineState.COLD)
        self._wake_sleepers()
        if any(not waiter.result.done() for waiter in self._waiters) and not self._closing:
            self._start()

    def _wake_sleepers(self) -> None:
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(self.status())

    # -- helpers ------------------------------------------------------------------------------------------

    def _dismiss(self) -> None:
        """Forget the engine that ran."""
        self._unwatch()
        self._engine = None
        self._suspected = False
        self._leases = set()
        self._ready_at = None
        self._memory = 0

    def _unwatch(self) -> None:
        for watch in self._watches:
            watch.cancel()
        self._watches = []
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

    async def _discard(self, engine: Engine, grace_s: float = 0.0) -> None:
        await engine.stop(grace_s)
        self._engines.discard(engine)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _set(self, state: EngineState, why: str = "", level: int = logging.INFO) -> None:
        if state is not self._state:
            _logger.log(level, "%s: %s%s%s", self.spec.id, state, " " if why else "", why)
        self._state = state
