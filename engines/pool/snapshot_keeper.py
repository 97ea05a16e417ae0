"""The snapshot of one model: found for a wake, and made of an engine that was started cold."""

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Sequence

from coldstart.sandbox.namespaces import SandboxError
from coldstart.snapshots.store import Layout, Snapshot
from coldstart.tiers import SleepTier
from engines.errors import EngineBroken, EngineError, HostClosing, SnapshotFailed
from engines.lifecycle import waking
from engines.lifecycle.engine import Dumped, Engine
from engines.lifecycle.snapshots import Found, Snapshots
from engines.patience import Patience, write_speed
from engines.pool.replica import Parts, Replica
from engines.pool.waiting import fail
from engines.status import EngineState, EngineStatus

_POLL_S = 0.05
_PATIENCE_S = 30.0
_FAILED_RESTORES = 2
_RETRY_S = 60.0
_MOST_RETRY_S = 3600.0
_logger = logging.getLogger("torpor.snapshot")


class Shelf:
    """``replicas``: the actor's. ``lend`` gives a ready one to make a snapshot of, where the actor has one.

    Without ``lend``, none is made.

    Its methods are called from the actor's task. The making of a snapshot is a task of its own, which pins a
    replica, holds it still and lets it rise again: between two turns of the actor, never within one.
    """

    def __init__(
        self,
        parts: Parts,
        snapshots: Snapshots,
        replicas: Sequence[Replica],
        lend: Callable[[], Replica | None] | None,
    ) -> None:
        self._parts = parts
        self._snapshots = snapshots
        self._replicas = replicas
        self._inspecting: asyncio.Task[None] | None = None
        snapshots.watch(self._on_damaged)
        self._lend = lend
        self._task: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._orders: list[tuple[asyncio.Future[EngineStatus], Callable[[], EngineStatus]]] = []
        self._stale: dict[str, str] = {}  # why, by id
        self._not_restored: dict[str, int] = {}  # how often in a row, by id
        self._failures = 0  # to make one, in a row
        self._retry: asyncio.TimerHandle | None = None  # when it will be tried again

    @property
    def has_snapshot(self) -> bool:
        """Whether there was a usable one when it was last looked for."""
        known = self._snapshots.known(self._parts.spec)
        return known is not None and known.id not in self._stale

    def candidate(self) -> Snapshot | None:
        """The one that a wake would use, if `find` finds it still good."""
        return self._snapshots.known(self._parts.spec) if self.has_snapshot else None

    async def find(self) -> Snapshot | None:
        """The snapshot that may be restored now; why there is none is logged."""
        try:
            return self._note(await asyncio.to_thread(self._snapshots.find, self._parts.spec))
        except OSError as error:
            _logger.warning("%s: its snapshot cannot be read: %s", self._parts.spec.id, error)
            return None

    def _note(self, found: Found) -> Snapshot | None:
        if found.newest is None:
            return None
        told = self._stale.pop(found.newest.id, None)
        if found.stale is not None:
            self._stale[found.newest.id] = found.stale
            if found.stale != told:
                name = self._parts.spec.id
                _logger.warning("%s: the snapshot is not used and will be made anew: %s", name, found.stale)
        return found.usable

    def condemn(self, snapshot_id: str, reason: str) -> None:
        """It must not be used any more."""
        self._snapshots.condemn(snapshot_id, reason)
        known = self._snapshots.known(self._parts.spec)
        if known is not None and known.id == snapshot_id:
            self._note(Found(known, reason))

    def judge(self, replica: Replica, failure: str) -> bool:
        """An engine has ended. Whether that was before it had shown that it answers as its snapshot did."""
        if replica.snapshot_id is None or not replica.broke_unproven:
            return False
        if replica.unfit:
            self.condemn(replica.snapshot_id, "a restored engine answered otherwise than before")
        else:
            self.not_restored(replica, failure)
        return True

    def not_restored(self, replica: Replica, failure: str) -> None:
        """Its snapshot could not be restored: once may be bad luck."""
        snapshot_id = replica.snapshot_id or ""
        failed = self._not_restored[snapshot_id] = self._not_restored.get(snapshot_id, 0) + 1
        if failed >= _FAILED_RESTORES:
            self.condemn(snapshot_id, f"{failed} restores in a row have failed: {failure.splitlines()[0]}")

    def restored(self, replica: Replica) -> None:
        """It answers as its snapshot did."""
        self._not_restored.pop(replica.snapshot_id or "", None)
        known = self._snapshots.known(self._parts.spec)
        if replica.snapshot_id is None or known is None or known.id != replica.snapshot_id:
            return
        if known.id in self._stale:  # found damaged while this one was being restored
            replica.give_up(replica.engine, self._stale[known.id])
        elif self._inspecting is None or self._inspecting.done():
            self._inspecting = asyncio.create_task(self._inspect(known))

    async def _inspect(self, snapshot: Snapshot) -> None:
        """Have the snapshot read in full now and then, while engines run that map it."""
        while any(replica.snapshot_id == snapshot.id for replica in self._replicas):
            due_s = self._snapshots.due_s(snapshot.id)
            if due_s is None:
                return
            await asyncio.sleep(max(0.0, due_s))
            await self._snapshots.inspect(snapshot)

    def _on_damaged(self, snapshot_id: str, reason: str) -> None:
        """What engines map has changed: their answers cannot be trusted."""
        self._parts.post(lambda: self._give_up(snapshot_id, reason))

    def _give_up(self, snapshot_id: str, reason: str) -> None:
        self.condemn(snapshot_id, reason)
        for replica in [one for one in self._replicas if one.snapshot_id == snapshot_id]:
            if replica.address is not None:  # of one that is being restored, its proof decides
                replica.give_up(replica.engine, f"its snapshot is damaged: {reason}")

    def begin(self) -> None:
        """Begin to read every byte of what an earlier run has left. Wakes do not wait for that."""
        if self._lend is not None:
            self._reading = asyncio.create_task(self._verify())

    async def _verify(self) -> None:
        if self._snapshots.known(self._parts.spec) is not None:
            self._note(await self._snapshots.verify(self._parts.spec))

    def consider(self, replica: Replica) -> None:
        """An engine is ready: make a snapshot of it, where there is none."""
        cold = replica.source is SleepTier.COLD and replica.state is EngineState.READY
        if cold and self._lend is not None and self._task is None and self._retry is None:
            self._task = asyncio.create_task(self._make_missing(replica))

    def order(self, done: asyncio.Future[EngineStatus], status: Callable[[], EngineStatus]) -> None:
        """Somebody wants a new one."""
        self._orders.append((done, status))
        if self._task is None:
            self._task = asyncio.create_task(self._make(self._lend() if self._lend is not None else None))

    async def close(self) -> None:
        """Give up what is being made."""
        self._forget_retry()
        self._snapshots.unwatch(self._on_damaged)
        for task in (self._task, self._reading, self._inspecting):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        for done, _ in self._orders:
            fail(done, HostClosing())

    async def _make_missing(self, replica: Replica) -> None:
        if await self.find() is None or self._orders:
            await self._make(replica)
        else:
            self._task = None

    async def _make(self, replica: Replica | None) -> None:
        spec = self._parts.spec
        failure: Exception | None = None
        began = time.perf_counter()
        try:
            snapshot = await (self._of_replica(replica) if replica else self._of_own())
        except (EngineError, SandboxError, OSError) as error:
            failure = error if isinstance(error, SnapshotFailed) else SnapshotFailed(str(error))
            _logger.warning("%s: no new snapshot: %s", spec.id, failure)
        except Exception as error:
            # The outermost boundary of this task: whoever ordered the snapshot must not wait for ever.
            failure = SnapshotFailed(str(error))
            _logger.exception("%s: no new snapshot", spec.id)
        else:
            self._failures = 0
            self._forget_retry()
            took_s = time.perf_counter() - began
            size = await asyncio.to_thread(snapshot.layout.disk_bytes)
            _logger.info(
                "%s: snapshot %s, %d MB, made in %.1f s", spec.id, snapshot.id, size // 10**6, took_s
            )
        finally:
            self._task = None
        if failure is not None and not isinstance(failure, _WentAway):
            self._try_later(replica)
        orders, self._orders = self._orders, []
        for done, status in orders:
            if failure is not None:
                fail(done, failure)
            elif not done.done():
                done.set_result(status())

    def _try_later(self, replica: Replica | None) -> None:
        """Engines that are started cold are not dumped in vain again and again."""
        self._failures += 1
        delay_s = min(_MOST_RETRY_S, _RETRY_S * 2 ** (self._failures - 1))
        self._forget_retry()
        self._retry = asyncio.get_running_loop().call_later(
            delay_s, lambda: self._parts.post(lambda: self._try_again(replica))
        )

    def _try_again(self, replica: Replica | None) -> None:
        self._forget_retry()
        if replica is not None:
            self.consider(replica)

    def _forget_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    async def _of_replica(self, replica: Replica) -> Snapshot:
        """Of an engine that serves: it is held still for the dump alone, when nobody uses it."""
        replica.pinned = True
        try:
            try:
                canary, ms = await self._warm_up(replica.engine)
            except EngineError as error:
                if _is_there(replica) or replica.state is EngineState.FAILED:
                    raise  # a warm-up that kills engines must not kill each of them
                raise _WentAway("the engine went away while it was warmed up") from error
            patience = time.monotonic() + _PATIENCE_S
            while not (replica.state is EngineState.READY and not replica.leases):
                if not _is_there(replica):
                    raise _WentAway("the engine went away before it could be dumped")
                if self._orders and time.monotonic() > patience:
                    break
                await asyncio.sleep(_POLL_S)  # a moment without requests has no event, and is not urgent
            else:
                if not replica.adapters.tainted:  # the memory of an engine keeps what was in it
                    return await self._dump_of(replica, canary, ms)
        finally:
            replica.pinned = False
        return await self._of_own()  # somebody waits for it, and the engine is never idle

    async def _dump_of(self, replica: Replica, canary: dict[str, object], ms: dict[str, float]) -> Snapshot:
        """Of an engine that nobody uses at this moment."""
        layout = self._snapshots.store.draft(self._parts.spec.id)
        began = time.perf_counter()
        try:
            async with replica.held_still() as engine:
                dumped = await self._dump(engine, layout)
        except BaseException:
            shutil.rmtree(layout.folder, ignore_errors=True)
            raise
        ms["dump"] = (time.perf_counter() - began) * 1000
        replica.pinned = False
        return await self._snapshots.publish(self._parts.spec, layout, dumped, canary, ms)

    async def _of_own(self) -> Snapshot:
        """Of an engine that is started for it and ended afterwards."""
        parts = self._parts
        try:
            async with asyncio.timeout(parts.spec.start_timeout_s):
                reservation = await parts.budget.reserve(parts.footprint.cold())
        except TimeoutError as error:
            raise SnapshotFailed("there is no memory for an engine of its own") from error
        engine = parts.make()
        layout = self._snapshots.store.draft(parts.spec.id)
        try:
            async with asyncio.timeout(parts.spec.start_timeout_s):
                ms = dict(await engine.start())
            canary, more = await self._warm_up(engine)
            began = time.perf_counter()
            dumped = await self._dump(engine, layout)
            ms |= more | {"dump": (time.perf_counter() - began) * 1000}
        except BaseException as error:
            shutil.rmtree(layout.folder, ignore_errors=True)
            if isinstance(error, TimeoutError):
                limit = f"the engine did not start within {parts.spec.start_timeout_s:g} s"
                raise SnapshotFailed(f"{limit}\n{engine.last_words()}") from error
            if isinstance(error, EngineBroken):
                await waking.ending(engine)
                raise SnapshotFailed(f"{error}\n{engine.last_words()}") from error
            raise
        finally:
            await engine.stop(0.0)
            reservation.release()
        return await self._snapshots.publish(parts.spec, layout, dumped, canary, ms)

    async def _warm_up(self, engine: Engine) -> tuple[dict[str, object], dict[str, float]]:
        began = time.perf_counter()
        canary = await self._snapshots.warm_up(self._parts.spec, engine)
        return dict(canary), {"warm_up": (time.perf_counter() - began) * 1000}

    async def _dump(self, engine: Engine, layout: Layout) -> Dumped:
        speed = await asyncio.to_thread(write_speed, layout.folder)
        limit_s = Patience.of(self._parts.spec).dump_s(self._parts.policy.dump_timeout_s, speed)
        try:
            async with asyncio.timeout(limit_s):
                return await engine.dump(layout)
        except TimeoutError as error:
            raise SnapshotFailed(f"the dump took longer than {limit_s:.0f} s") from error


class _WentAway(SnapshotFailed):
    """The engine ended, or went to sleep: that says nothing of the next one."""


def _is_there(replica: Replica) -> bool:
    return replica.state in (EngineState.READY, EngineState.SNAPSHOTTING)


def started_cold(replicas: Sequence[Replica]) -> Replica | None:
    """A ready engine that a snapshot can be made of."""
    ready = (r for r in replicas if r.state is EngineState.READY and r.source is SleepTier.COLD)
    return next((replica for replica in ready if not replica.adapters.tainted), None)
