"""The snapshot of one model: found for its wakes, and made of an engine that was started cold."""

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from coldstart.sandbox.namespaces import SandboxError
from coldstart.snapshots.store import Layout, Snapshot
from coldstart.tiers import SleepTier
from engines.errors import EngineBroken, EngineError, HostClosing, SnapshotFailed
from engines.lifecycle import waking
from engines.lifecycle.engine import Dumped, Engine
from engines.lifecycle.snapshots import EngineSnapshots, Found
from engines.patience import Patience, write_speed
from engines.pool.futures import fail
from engines.pool.replica import Replica, ReplicaDependencies
from engines.status import EngineState, EngineStatus

_POLL_S = 0.05
_FAILED_RESTORES = 2
_MOST_RETRY_S = 3600.0
_logger = logging.getLogger("torpor.snapshot")


class SnapshotKeeper:
    """Finds the snapshot of one model for its wakes, makes a missing one, and stops the use of a bad one.

    ``replicas`` returns the actor's replicas; without ``makes``, no snapshot is made. The methods are called
    from the actor's task. A task of the keeper makes a snapshot of an engine that has served no request,
    since what a request leaves in the memory of an engine would be in every engine after it: it holds a
    replica that has just started, before its first lease, or starts an engine of its own.

    It has more attributes than other classes because finding, inspecting and making a snapshot share what is
    known of it.
    """

    def __init__(
        self,
        dependencies: ReplicaDependencies,
        snapshots: EngineSnapshots,
        replicas: Callable[[], Sequence[Replica]],
        *,
        makes: bool,
    ) -> None:
        self._dependencies = dependencies
        self._spec = dependencies.spec
        self._snapshots = snapshots
        self._replicas = replicas
        self._inspecting: asyncio.Task[None] | None = None
        snapshots.watch(self._on_damaged)
        self._makes = makes
        self._task: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._orders: list[tuple[asyncio.Future[EngineStatus], Callable[[], EngineStatus]]] = []
        self._stale: dict[str, str] = {}  # why, by id
        self._not_restored: dict[str, int] = {}  # how often in a row, by id
        self._failures = 0  # to make one, in a row
        self._retry: asyncio.TimerHandle | None = None  # when it will be tried again

    @property
    def has_snapshot(self) -> bool:
        """Whether there was a usable snapshot at the last look for one."""
        snapshot = self._snapshots.known(self._spec)
        return snapshot is not None and snapshot.id not in self._stale

    def candidate(self) -> Snapshot | None:
        """The snapshot that a wake would use, if `find` still finds it usable."""
        return self._snapshots.known(self._spec) if self.has_snapshot else None

    async def find(self) -> Snapshot | None:
        """The snapshot that may be restored now. The reason is logged if there is none."""
        try:
            return self._note(await asyncio.to_thread(self._snapshots.find, self._spec))
        except OSError as error:
            _logger.warning("%s: its snapshot cannot be read: %s", self._spec.id, error)
            return None

    def _note(self, result: Found) -> Snapshot | None:
        if result.newest is None:
            return None
        earlier_reason = self._stale.pop(result.newest.id, None)
        if result.stale is not None:
            self._stale[result.newest.id] = result.stale
            if result.stale != earlier_reason:
                name = self._spec.id
                _logger.warning("%s: the snapshot is not used and will be made again: %s", name, result.stale)
        return result.usable

    def condemn(self, snapshot_id: str, reason: str) -> None:
        """Stop the use of a snapshot."""
        self._snapshots.condemn(snapshot_id, reason)
        snapshot = self._snapshots.known(self._spec)
        if snapshot is not None and snapshot.id == snapshot_id:
            self._note(Found(snapshot, reason))

    def judge(self, replica: Replica, failure: str) -> bool:
        """Whether an engine that has ended was restored and not verified: its snapshot may be at fault."""
        if replica.snapshot_id is None or not replica.broke_unverified:
            return False
        if replica.canary_failed:
            self.condemn(replica.snapshot_id, "a restored engine did not answer as before")
        else:
            self.not_restored(replica, failure)
        return True

    def not_restored(self, replica: Replica, failure: str) -> None:
        """Count a failed restore of a snapshot, which is not used again after the second in a row."""
        snapshot_id = replica.snapshot_id or ""
        failed = self._not_restored[snapshot_id] = self._not_restored.get(snapshot_id, 0) + 1
        if failed >= _FAILED_RESTORES:
            self.condemn(snapshot_id, f"{failed} restores in a row have failed: {failure.splitlines()[0]}")

    def restored(self, replica: Replica) -> None:
        """Clear the failures of a snapshot whose restored engine answers as before."""
        self._not_restored.pop(replica.snapshot_id or "", None)
        snapshot = self._snapshots.known(self._spec)
        if replica.snapshot_id is None or snapshot is None or snapshot.id != replica.snapshot_id:
            return
        if snapshot.id in self._stale:  # the damage was seen while this replica was being restored
            replica.give_up(replica.engine, self._stale[snapshot.id])
        elif self._inspecting is None or self._inspecting.done():
            self._inspecting = asyncio.create_task(self._inspect(snapshot))

    async def _inspect(self, snapshot: Snapshot) -> None:
        """Read the snapshot in full from time to time, while engines run that map it."""
        while any(replica.snapshot_id == snapshot.id for replica in self._replicas()):
            due_s = self._snapshots.due_s(snapshot.id)
            if due_s is None:
                return
            await asyncio.sleep(max(0.0, due_s))
            await self._snapshots.inspect(snapshot)

    def _on_damaged(self, snapshot_id: str, reason: str) -> None:
        """Replace the engines that map a damaged snapshot: their answers cannot be trusted."""
        self._dependencies.post(lambda: self._give_up(snapshot_id, reason))

    def _give_up(self, snapshot_id: str, reason: str) -> None:
        self.condemn(snapshot_id, reason)
        for replica in [replica for replica in self._replicas() if replica.snapshot_id == snapshot_id]:
            if replica.address is not None:  # if it is still being restored, its canary decides
                replica.give_up(replica.engine, f"its snapshot is damaged: {reason}")

    def begin(self) -> None:
        """Begin to read every byte of a snapshot of an earlier run. Wakes do not wait for that."""
        if self._makes:
            self._reading = asyncio.create_task(self._verify())

    async def _verify(self) -> None:
        if self._snapshots.known(self._spec) is not None:
            self._note(await self._snapshots.verify(self._spec))

    def consider(self, replica: Replica) -> bool:
        """Make a snapshot of an engine that has just started, if there is none; False if it may serve now."""
        fresh = replica.source is SleepTier.COLD and replica.state is EngineState.READY and not replica.served
        if not fresh or not self._makes or self._task is not None or self._retry is not None:
            return False
        replica.hold()
        self._task = asyncio.create_task(self._make_missing(replica))
        return True

    def order(self, done: asyncio.Future[EngineStatus], status: Callable[[], EngineStatus]) -> None:
        """Make a new snapshot; ``done`` gets the model's status, or fails."""
        self._orders.append((done, status))
        if self._task is None:
            self._task = asyncio.create_task(self._make(self._of_own))

    async def close(self) -> None:
        """Give up the snapshot that is being made."""
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
            await self._make(partial(self._of_replica, replica))
        else:
            replica.let_go()  # before the task is forgotten: it is not considered again
            self._task = None

    async def _make(self, make: Callable[[], Awaitable[Snapshot]]) -> None:
        spec = self._spec
        failure: Exception | None = None
        began = time.perf_counter()
        try:
            snapshot = await make()
        except (EngineError, SandboxError, OSError) as error:
            failure = error if isinstance(error, SnapshotFailed) else SnapshotFailed(str(error))
            _logger.warning("%s: no new snapshot: %s", spec.id, failure)
        except Exception as error:
            # The outermost boundary of this task: the callers of `order` must not wait for ever.
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
        if failure is not None:
            self._try_later()
        orders, self._orders = self._orders, []
        for done, status in orders:
            if failure is not None:
                fail(done, failure)
            elif not done.done():
                done.set_result(status())

    def _try_later(self) -> None:
        """Try again later, after a delay that doubles with each failure."""
        self._failures += 1
        self._forget_retry()
        self._retry = asyncio.get_running_loop().call_later(
            self._retry_s(), lambda: self._dependencies.post(self._try_again)
        )

    def _retry_s(self) -> float:
        return min(_MOST_RETRY_S, self._dependencies.policy.snapshot_retry_s * 2.0 ** (self._failures - 1))

    def _try_again(self) -> None:
        """Make it of an engine of its own, if no other has to leave memory for that."""
        self._forget_retry()
        dependencies = self._dependencies
        if self._task is not None or self.has_snapshot:
            return
        if dependencies.budget.fits(dependencies.footprint.cold()):
            self._task = asyncio.create_task(self._make(self._of_own))
        else:
            self._retry = asyncio.get_running_loop().call_later(
                self._retry_s(), lambda: dependencies.post(self._try_again)
            )

    def _forget_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    async def _of_replica(self, replica: Replica) -> Snapshot:
        """Make a snapshot of an engine that is held and has not served yet; it serves from the dump on."""
        layout: Layout | None = None
        damaged = True
        try:
            canary, ms = await self._warm_up(replica.engine)
            layout = self._snapshots.store.draft(self._spec.id)
            began = time.perf_counter()
            dumped = await self._dump(replica.engine, layout)
            ms["dump"] = (time.perf_counter() - began) * 1000
            damaged = False
        except BaseException:
            if layout is not None:
                shutil.rmtree(layout.folder, ignore_errors=True)
            raise
        finally:
            replica.let_go(damaged=damaged)
        return await self._snapshots.publish(self._spec, layout, dumped, canary, ms)

    async def _of_own(self) -> Snapshot:
        """Make a snapshot of an engine that is started for it and ended afterwards."""
        dependencies = self._dependencies
        try:
            async with asyncio.timeout(dependencies.spec.start_timeout_s):
                reservation = await dependencies.budget.reserve(dependencies.footprint.cold())
        except TimeoutError as error:
            raise SnapshotFailed("there is no memory for an engine of its own") from error
        engine = dependencies.make()
        layout = self._snapshots.store.draft(dependencies.spec.id)
        try:
            async with asyncio.timeout(dependencies.spec.start_timeout_s):
                ms = dict(await engine.start())
            canary, more = await self._warm_up(engine)
            began = time.perf_counter()
            dumped = await self._dump(engine, layout)
            ms |= more | {"dump": (time.perf_counter() - began) * 1000}
        except BaseException as error:
            shutil.rmtree(layout.folder, ignore_errors=True)
            if isinstance(error, TimeoutError):
                limit = f"the engine did not start within {dependencies.spec.start_timeout_s:g} s"
                raise SnapshotFailed(f"{limit}\n{engine.last_words()}") from error
            if isinstance(error, EngineBroken):
                await waking.ending(engine)
                raise SnapshotFailed(f"{error}\n{engine.last_words()}") from error
            raise
        finally:
            await engine.stop(0.0)
            reservation.release()
        return await self._snapshots.publish(dependencies.spec, layout, dumped, canary, ms)

    async def _warm_up(self, engine: Engine) -> tuple[dict[str, object], dict[str, float]]:
        began = time.perf_counter()
        canary = await self._snapshots.warm_up(self._spec, engine)
        return dict(canary), {"warm_up": (time.perf_counter() - began) * 1000}

    async def _dump(self, engine: Engine, layout: Layout) -> Dumped:
        speed = await asyncio.to_thread(write_speed, layout.folder)
        limit_s = Patience.of(self._spec).dump_s(self._dependencies.policy.dump_timeout_s, speed)
        try:
            async with asyncio.timeout(limit_s):
                return await engine.dump(layout)
        except TimeoutError as error:
            raise SnapshotFailed(f"the dump took longer than {limit_s:.0f} s") from error
