"""The engines of one machine, woken for the requests that need them: the only entrance from outside."""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from coldstart.criu import program
from coldstart.criu.program import Criu, CriuMissing
from coldstart.sandbox.namespaces import Isolation
from coldstart.sandbox.root_layout import RootLayout
from coldstart.sandbox.spares import SandboxPool
from coldstart.sleep_drivers import CpuDriver, CudaDriver
from coldstart.snapshots.store import SnapshotStore
from coldstart.tiers import SleepTier
from engines import wire
from engines.adapter import Adapter
from engines.errors import (
    AdapterRejected,
    AdapterUnfit,
    EngineBroken,
    EngineUnavailable,
    HostClosing,
    UnknownModel,
    UnsupportedTier,
)
from engines.lifecycle import adapter_loader
from engines.lifecycle.isolation import missing_text, prepare_runtime
from engines.lifecycle.process import EngineProcess, Runtime
from engines.lifecycle.run_folders import RunFolders
from engines.lifecycle.snapshots import EngineSnapshots
from engines.patience import Patience
from engines.policy import HostPolicy
from engines.pool import memory_budget
from engines.pool.actor import EngineActor
from engines.pool.idle_history import IdleHistoryStore
from engines.pool.memory_budget import MemoryBudget, Victim
from engines.pool.remote import RemoteEngine
from engines.pool.status_summary import joined
from engines.spec import ModelSpec, servable
from engines.status import EngineLease, EngineState, EngineStatus, HostMemory, WakeObserver

EngineMaker = Callable[[ModelSpec, Runtime], EngineProcess]
OnAwake = Callable[[str, str | None, int], None]
"""Called with a model, a pool, and how many of its engines requests may be sent to now."""

_NO_SNAPSHOTS = "engines cannot sleep in snapshots, only paused: %s (see `torpor doctor`)"
_logger = logging.getLogger("torpor.engine")


class EngineHost:
    """The engines of this machine. Use it as an async context manager: leaving it ends every engine.

    ``snapshot_dir``: where snapshots are kept; None for none. ``criu_dir``: the folder of an unpacked CRIU.
    ``memory_bytes``: what all engines together may use. ``make`` and ``policy`` are for tests.

    It has more methods and attributes than other classes because it is the one entrance to the engines.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        *,
        run_dir: Path,
        snapshot_dir: Path | None = None,
        criu_dir: Path | None = None,
        memory_bytes: int | None = None,
        policy: HostPolicy | None = None,
        make: EngineMaker = EngineProcess,
    ) -> None:
        self.specs = tuple(specs)
        self._policy = policy or HostPolicy()
        self._folders = RunFolders(run_dir)
        self._snapshot_dir = snapshot_dir
        self._criu_dir = criu_dir
        self._budget = MemoryBudget(
            memory_bytes or memory_budget.default_limit(), self._victims, self._kept_bytes
        )
        self._idle_history = IdleHistoryStore(run_dir / "habits", self._policy.keep_alive_s)
        self._sandboxes: SandboxPool | None = None
        self.snapshots: EngineSnapshots | None = None
        self._make = make
        self._actors: dict[str, EngineActor] = {}
        self._pools: dict[str, dict[str, EngineActor]] = {}  # by model, then by pool
        self._runtime: Runtime | None = None
        self._watchers: list[OnAwake] = []
        self._wake_observers: list[WakeObserver] = []
        self._remote = {spec.id: RemoteEngine(spec) for spec in self.specs if spec.remote}
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: list[asyncio.Task[None]] = []
        self._open = False

    async def __aenter__(self) -> Self:
        """Remove what an earlier process left, and begin to start the models that are to be preloaded.

        Raises OSError if the folder for running engines cannot be made.
        """
        await asyncio.to_thread(self._folders.open)
        try:
            await self._open_runtime()
        except BaseException:
            await self._close_sandboxes()
            raise
        return self

    async def _open_runtime(self) -> None:
        local = [spec for spec in self.specs if not spec.remote]
        driver = CpuDriver() if wire.on_cpu() else CudaDriver()
        criu = await self._find_criu() if local and SleepTier.SNAPSHOT in driver.tiers else None
        if local:
            runtime, reason = await prepare_runtime(
                self._folders,
                criu,
                driver,
                spare_sandboxes=self._policy.spare_sandboxes,
                memory_bytes=self._budget.limit,
            )
            self._report_runtime(runtime, None if criu is None else reason)
        else:
            sandboxes = SandboxPool(Isolation(namespaces=False), RootLayout({}), self._folders.run_dir, 0)
            runtime = Runtime(self._folders, sandboxes, None, driver)
        self._runtime, self._sandboxes = runtime, runtime.sandboxes
        if runtime.criu is not None and self._snapshot_dir is not None:
            store = SnapshotStore(self._snapshot_dir, self._policy.inspect_interval_s)
            await asyncio.to_thread(store.open)
            identity = runtime.criu.identity
            self.snapshots = EngineSnapshots(store, identity, lambda spec: self._make(spec, runtime))
        self._sandboxes.refill(0.0)
        for spec in local:
            self._actors[spec.id] = self._start_actor(spec, runtime, None)
        self._open = True
        for spec in local:
            if spec.preload:
                task = asyncio.create_task(self._preload(spec.id))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _start_actor(self, spec: ModelSpec, runtime: Runtime, pool: str | None) -> EngineActor:
        """An actor for the model's shared engines, or for those of a pool, which makes no snapshots."""
        actor = EngineActor(
            spec,
            lambda: self._make(spec, runtime),
            self._policy,
            budget=self._budget,
            keep_alive=self._idle_history.policy(spec.id if pool is None else f"{spec.id}.{pool}"),
            snapshots=self.snapshots,
            makes_snapshots=pool is None,
            on_awake=lambda awake: self._report_awake(spec.id, pool, awake),
            observers=self._wake_observers,
        )
        task = asyncio.create_task(actor.run(), name=f"engine {spec.id}")
        task.add_done_callback(_report)
        self._running.append(task)
        return actor

    def _report_awake(self, model_id: str, pool: str | None, awake: int) -> None:
        for watcher in self._watchers:
            watcher(model_id, pool, awake)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        for actor in self._all_actors():
            actor.close()
        closing = asyncio.gather(*self._running, *self._tasks, return_exceptions=True)
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing  # it is bounded, and no engine may be left
            raise
        finally:
            await asyncio.to_thread(self._idle_history.keep)
            await self._close_sandboxes()

    async def _close_sandboxes(self) -> None:
        if self._sandboxes is not None:
            await self._sandboxes.close()
        if self._runtime is not None:
            self._runtime.owners.close()
        await asyncio.to_thread(self._folders.close)

    async def _find_criu(self) -> Criu | None:
        """The CRIU that there is. The reason is logged if there is none."""
        if self._snapshot_dir is None:
            return None
        try:
            return await asyncio.to_thread(program.find, self._criu_dir)
        except CriuMissing as error:
            _logger.warning(_NO_SNAPSHOTS, error)
            return None

    @staticmethod
    def _report_runtime(runtime: Runtime, no_snapshots: str | None) -> None:
        if runtime.isolation.missing:
            _logger.warning("engines are not fully isolated: %s", missing_text(runtime.isolation))
        if no_snapshots is not None:
            _logger.warning(_NO_SNAPSHOTS, no_snapshots)
        if runtime.criu is not None:
            _logger.info("CRIU %s", runtime.criu.identity)

    def _victims(self) -> list[Victim]:
        return [victim for actor in self._all_actors() for victim in actor.victims()]

    def _all_actors(self) -> list[EngineActor]:
        pools = (actor for pools in self._pools.values() for actor in pools.values())
        return [*self._actors.values(), *pools]

    def _kept_bytes(self) -> int:
        return sum(actor.kept_bytes() for actor in self._all_actors())

    def memory(self) -> HostMemory:
        """The memory of all engines. Reads /proc for some milliseconds: call it in a thread."""
        spare_bytes = self._sandboxes.memory_bytes() if self._sandboxes is not None else 0
        return HostMemory(self._budget.limit, self._budget.used, spare_bytes)

    @asynccontextmanager
    async def acquire(
        self,
        model_id: str,
        adapter: Adapter | None = None,
        *,
        timeout_s: float | None = None,
        prefix: int | None = None,
        pool: str | None = None,
    ) -> AsyncIterator[EngineLease]:
        """A lease on one of the model's engines, woken if need be. It stays awake until the context is left.

        Waits at most ``timeout_s`` seconds, or the time that a start of the model may take. ``prefix``
        identifies how the conversation begins: requests with the same prefix go to the same engine if it is
        free. ``pool`` names engines that only requests with this pool are given; a pool has as many as the
        shared engines may be.

        With an ``adapter``, whose canary must have been recorded, the engine has loaded it, and serves it
        under the lease's ``served_model_name``. Nothing of an answer leaves the engine before the canary has
        passed. Raises `UnknownModel`, `EngineUnavailable`, `HostClosing`; `AdapterRejected` if the engine
        refuses the adapter, `AdapterUnfit` if its canary differs.
        """
        if adapter is not None:
            servable(self._spec(model_id), adapter)
            if adapter.canary is None:
                raise AdapterRejected("the adapter was not examined when it was uploaded")
        remote = self._remote.get(model_id)
        if remote is not None:
            lease = EngineLease(model_id, remote.address, SleepTier.HOT, 0.0)
            remote.leases.add(lease)
            try:
                yield lease
            finally:
                remote.leases.discard(lease)
            return
        async with self._leased(self._actor(model_id, pool), timeout_s, prefix, adapter) as lease:
            yield lease

    @asynccontextmanager
    async def _leased(
        self, actor: EngineActor, timeout_s: float | None, prefix: int | None, adapter: Adapter | None
    ) -> AsyncIterator[EngineLease]:
        limit_s = actor.spec.start_timeout_s if timeout_s is None else timeout_s
        lease = await self._lease(actor, limit_s, prefix, adapter)
        try:
            yield lease
        finally:
            actor.give_back(lease)

    def _spec(self, model_id: str) -> ModelSpec:
        remote = self._remote.get(model_id)
        return self._actor(model_id).spec if remote is None else remote.spec

    async def _lease(
        self, actor: EngineActor, timeout_s: float, prefix: int | None, adapter: Adapter | None
    ) -> EngineLease:
        lease = await self._result(actor, actor.ask(lease=True, prefix=prefix, adapter=adapter), timeout_s)
        if lease is None:
            raise HostClosing
        return lease

    async def _result(
        self, actor: EngineActor, future: asyncio.Future[EngineLease | None], timeout_s: float
    ) -> EngineLease | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as error:
            _return_unclaimed(actor, future)
            raise EngineUnavailable(
                f"the engine of model {actor.spec.id} could not be woken in time", actor.expected_start_s()
            ) from error
        except asyncio.CancelledError:
            _return_unclaimed(actor, future)
            raise

    async def examine(self, model_id: str, adapter: Adapter, *, timeout_s: float | None = None) -> bytes:
        """Load an uploaded adapter into an engine, woken if need be, and record its canary.

        Returns what is to be kept as the adapter's ``canary``. Raises `AdapterRejected` if the engine refuses
        the adapter, or is not made for adapters; `UnknownModel`, `EngineUnavailable`, `HostClosing`.
        """
        # A digest of its own: no other request is given it, and the same content may be in use already.
        alone = replace(adapter, digest=f"{adapter.digest[:32]}.{secrets.token_hex(8)}", canary=None)
        servable(self._spec(model_id), adapter)
        try:
            async with self._leased(self._actor(model_id), timeout_s, None, alone) as lease:
                canary = await adapter_loader.record(lease, Patience.of(self._spec(model_id)))
        except AdapterUnfit as error:
            raise AdapterRejected("the engine fails when it loads the adapter") from error
        except EngineBroken as error:
            self.report_broken(lease)
            raise EngineUnavailable("the engine failed while it examined the adapter", 5.0) from error
        for actor in self._all_actors():
            actor.clear_adapter_failures(adapter.digest)
        return canary

    def forget(self, digest: str) -> None:
        """Unload a deleted adapter from every engine, once no request uses it there."""
        for actor in self._all_actors():
            actor.delete_adapter(digest)

    def resident(self, model_id: str) -> Mapping[str, int]:
        """The digests of the adapters that the model's engines hold, and how many engines hold each."""
        return Counter(
            adapter.digest for replica in self._status(model_id).replicas for adapter in replica.adapters
        )

    def watch(self, on_awake: OnAwake) -> None:
        """Call ``on_awake``, from now on, when the number of awake engines of a model changes."""
        self._watchers.append(on_awake)

    def observe_wakes(self, observer: WakeObserver) -> None:
        """Tell the observer, from now on, of every wake and of every canary that passes after one."""
        self._wake_observers.append(observer)

    def awake(self, model_id: str, pool: str | None = None) -> int:
        """How many of the model's engines requests may be sent to now; 1 for a model behind a ``url``."""
        if model_id in self._remote:
            return 1
        actor = self._actors.get(model_id) if pool is None else self._pools.get(model_id, {}).get(pool)
        return 0 if actor is None else actor.awake

    def expect(self, model_id: str, queued: int, pool: str | None = None) -> None:
        """Note how many requests wait for their turn at the model: more engines may be woken for them."""
        if self._open and model_id not in self._remote:
            self._actor(model_id, pool).expect(queued)

    def report_broken(self, lease: EngineLease) -> None:
        """Check the health of an engine that a request with this lease saw fail; leases wait for the result.

        Call it before the lease is given back, or another request may be given the engine in between. An
        engine that does not answer its health check is ended, and another is started for the waiters.
        """
        for actor in (self._actors.get(lease.model_id), *self._pools.get(lease.model_id, {}).values()):
            if actor is not None:
                actor.suspect(lease)

    def status(self) -> list[EngineStatus]:
        """The status of every model, in the order of the configuration."""
        return [self._status(spec.id) for spec in self.specs]

    async def wake(self, model_id: str) -> EngineStatus:
        """Start the engine unless it runs. Raises `UnknownModel`, `EngineUnavailable`."""
        if model_id not in self._remote:
            actor = self._actor(model_id)
            limit_s = Patience.of(actor.spec).wake_s(self._policy.restore_timeout_s, actor.spec)
            await self._result(actor, actor.ask(lease=False), limit_s)
        return self._status(model_id)

    async def sleep(self, model_id: str, tier: SleepTier) -> EngineStatus:
        """Let the model's requests end, for a bounded time, and put its engines to sleep.

        Raises `UnknownModel`; `UnsupportedTier` for a model behind a ``url``, and if there is no snapshot.
        """
        if model_id in self._remote:
            raise UnsupportedTier(f"model {model_id} has a url: its engine is not run by this host")
        actor = self._actor(model_id)
        if tier is SleepTier.HOT:
            raise UnsupportedTier("hot is not a tier to sleep in: use paused, snapshot or cold")
        pools = self._pools.get(model_id, {})
        shared, *others = await asyncio.gather(
            actor.sleep(tier), *(actor.sleep(tier) for actor in pools.values())
        )
        return joined(shared, dict(zip(pools, others, strict=True))) if pools else shared

    async def snapshot(self, model_id: str) -> EngineStatus:
        """Take a new snapshot of the model. Raises `UnknownModel`, `UnsupportedTier`, `SnapshotFailed`."""
        if model_id in self._remote:
            raise UnsupportedTier(f"model {model_id} has a url: its engine is not run by this host")
        return await self._actor(model_id).snapshot()

    def _actor(self, model_id: str, pool: str | None = None) -> EngineActor:
        if not self._open:
            raise HostClosing
        try:
            shared = self._actors[model_id]
        except KeyError:
            raise UnknownModel(model_id) from None
        if pool is None or self._runtime is None:
            return shared
        pools = self._pools.setdefault(model_id, {})
        if pool not in pools:
            pools[pool] = self._start_actor(
                replace(shared.spec, min_hot=0, preload=False), self._runtime, pool
            )
        return pools[pool]

    def _status(self, model_id: str) -> EngineStatus:
        remote = self._remote.get(model_id)
        if remote is not None:
            return remote.status()
        actor = self._actors.get(model_id)
        if actor is None:
            return EngineStatus(id=model_id, state=EngineState.COLD, tier=SleepTier.COLD)
        pools = {pool: actor.status() for pool, actor in self._pools.get(model_id, {}).items()}
        return joined(actor.status(), pools) if pools else actor.status()

    async def _preload(self, model_id: str) -> None:
        try:
            await self.wake(model_id)
        except EngineUnavailable as error:
            _logger.warning("%s is not preloaded: %s", model_id, error)


def _return_unclaimed(actor: EngineActor, future: asyncio.Future[EngineLease | None]) -> None:
    """Give back a lease that was granted in the moment in which the caller gave up."""
    if future.done() and not future.cancelled() and future.exception() is None:
        lease = future.result()
        if lease is not None:
            actor.give_back(lease)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.critical("the task of %s died", task.get_name(), exc_info=error)
