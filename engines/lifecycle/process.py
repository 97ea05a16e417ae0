"""One engine: its sandboxed processes, its folder, its output; started cold or restored from a snapshot."""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from coldstart.criu import program
from coldstart.criu.program import Criu
from coldstart.sandbox import call_filter, process_tree
from coldstart.sandbox.control_groups import Limits
from coldstart.sandbox.mounts import Mount, OwnerMaps
from coldstart.sandbox.namespaces import Isolation, Sandbox, SandboxError, uid_of
from coldstart.sandbox.root_layout import RootLayout
from coldstart.sandbox.spares import SandboxPool
from coldstart.sandbox.untrusted_files import copy_regular_files
from coldstart.sleep_drivers import CpuDriver, SleepDriver
from coldstart.snapshots.manifest import monotonic_s
from coldstart.snapshots.readahead import read_ahead
from coldstart.snapshots.store import Layout, Snapshot, in_use
from engines.errors import EngineBroken, EngineError
from engines.lifecycle import command
from engines.lifecycle.adapter_loader import AdapterLoader
from engines.lifecycle.control_calls import call
from engines.lifecycle.ending import end_text, kernel_kills
from engines.lifecycle.engine import Dumped
from engines.lifecycle.engine_root import (
    ADAPTERS,
    CACHE,
    WORK,
    EngineRoot,
    ModelView,
    host_root,
    model_view,
    unreadable,
)
from engines.lifecycle.output import EngineOutput
from engines.lifecycle.run_folders import RunFolder, RunFolders
from engines.patience import Patience
from engines.sizing import PROCESS_BYTES
from engines.spec import EngineAddress, ModelSpec
from engines.wire import ENGINE_DIR, SNAPSHOT, UNFIT, on_cpu

_POLL_S = 0.05
_OUTPUT_TIMEOUT_S = 1.0
_WAKE_TIMEOUT_S = 30.0
_SOCKET = "s"
_CRIU_OUTPUT = "criu.out"
_TOLD_LINES = 5
_MODEL_CLASSES = Path("cache/vllm/modelinfos")
_TASKS, _TASKS_PER_CORE = 512, 16
ON_DUMP = "coldstart/criu/on_dump.sh"
SHM = Path("/dev/shm")  # noqa: S108 - the sandbox's own


class EngineStartFailed(EngineError):
    """The engine ended, or could not be started, before it answered. The message holds its last words."""


class DumpFailed(EngineError):
    """The engine could not be dumped."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where engines run: their folders, the sandboxes, the paths in them, and CRIU where there is one."""

    folders: RunFolders
    sandboxes: SandboxPool
    criu: Criu | None = None
    driver: SleepDriver = field(default_factory=CpuDriver)
    root: EngineRoot = field(default_factory=host_root)
    owners: OwnerMaps = field(default_factory=OwnerMaps)
    memory_bytes: int | None = None

    def limits(self, spec: ModelSpec) -> Limits:
        """What an engine of the model may use: twice the memory that it is expected to need.

        At most ``memory_bytes``, which all engines together may use, unless it needs more and so runs alone.
        Of the processors it has the weight of a process for each of them, as the threads that compute have.
        """
        expected = spec.weights_bytes() + spec.kv_cache_bytes + PROCESS_BYTES
        cores = len(os.sched_getaffinity(0))
        most = min(2 * expected, self.memory_bytes or 2 * expected)
        return Limits(max(expected, most), _TASKS + _TASKS_PER_CORE * cores, float(cores))

    @property
    def isolation(self) -> Isolation:
        """How engines are shut in."""
        return self.sandboxes.isolation


class EngineProcess:
    """The processes of one engine, from `start` or `restore` to `stop`. It is begun once.

    ``argv`` makes the arguments of the Python that is the engine, from the spec, as the engine is to see it,
    and the path of the socket to listen on.

    It has many methods and attributes because it is all of `engines.lifecycle.engine.Engine`, whose
    operations share the sandbox, the folder and the process.
    """

    def __init__(
        self,
        spec: ModelSpec,
        runtime: Runtime,
        *,
        argv: Callable[[ModelSpec, Path], Sequence[str]] = command.command,
        health_timeout_s: float = 10.0,
    ) -> None:
        self._spec = spec
        self._runtime = runtime
        self._argv = argv
        self._health_timeout_s = health_timeout_s
        self._patience = Patience.of(spec)
        self._view: ModelView | None = None
        self._output = EngineOutput(spec.id)
        self._reading: asyncio.Task[int] | None = None
        self._folder: RunFolder | None = None
        self._sandbox: Sandbox | None = None
        self._pipe = 0
        self._main_pid = 0
        self._ended: asyncio.Task[int] | None = None
        self._kernel_kills = kernel_kills()
        self._stopping: asyncio.Task[None] | None = None

    @property
    def _socket(self) -> Path:
        if self._folder is None:
            raise EngineBroken("the engine was never started")
        return self._folder.box / _SOCKET

    @property
    def address(self) -> EngineAddress:
        """Where it answers. It has one once it has been started."""
        return EngineAddress(uds=str(self._socket))

    @property
    def adapters(self) -> AdapterLoader:
        """The way to load adapters into it."""
        if self._folder is None:
            raise EngineBroken("the engine was never started")
        inside = ADAPTERS if self._isolated else self._folder.adapters
        return AdapterLoader(self._socket, self._folder.adapters, inside, self._patience, self.uid)

    def command(self) -> tuple[list[str], dict[str, str]]:
        """The argv and the environment that it is started with: a snapshot is only good for these.

        Raises `EngineError`.
        """
        inside, root = self._inside(), self._runtime.root
        spec = self._seen().spec if self._isolated else self._spec
        argv = [str(root.interpreter), *self._argv(spec, inside / _SOCKET)]
        cache = CACHE if self._isolated and not on_cpu() else inside / "cache"
        return argv, command.environment(inside, cache, root)

    @property
    def _isolated(self) -> bool:
        return self._runtime.isolation.namespaces

    def authority(self) -> Mapping[str, str]:
        """The user that it is, and the digest of the filter of its system calls: a snapshot holds both."""
        filtered = self._runtime.isolation.call_filter
        return {"user": str(self.uid), "call filter": call_filter.digest() if filtered else "none"}

    @property
    def uid(self) -> int | None:
        """The user and group that it runs as; None: this process's."""
        return uid_of(self._spec.id) if self._isolated else None

    def _seen(self) -> ModelView:
        if self._view is None:
            self._view = model_view(self._spec)
        return self._view

    def layout(self) -> RootLayout:
        """What it sees of the host, its model's files included."""
        layout = self._runtime.sandboxes.layout
        return layout.with_binds(self._seen().binds) if self._isolated else layout

    def _inside(self) -> Path:
        return ENGINE_DIR if self._isolated or self._folder is None else self._folder.box

    async def start(self) -> Mapping[str, float]:
        """Return when it answers, with the milliseconds that each phase took.

        Raises `EngineStartFailed`. Whatever happens, `stop` cleans up.
        """
        began = time.perf_counter()
        try:
            sandbox, _ = await self._claim_sandbox()
            argv, env = self.command()
            self._main_pid = await sandbox.run(argv, env=env, cwd=self._inside(), uid=self.uid)
        except (OSError, SandboxError) as error:
            raise EngineStartFailed(f"the engine cannot be started: {error}") from error
        begun = time.perf_counter()
        try:
            await self._answers()
        except EngineStartFailed as error:
            raise EngineStartFailed(f"{error}{await asyncio.to_thread(self._file_advice)}") from error
        await asyncio.to_thread(self._keep_model_classes)
        self._runtime.sandboxes.refill()
        return {"sandbox": (begun - began) * 1000, "start": (time.perf_counter() - begun) * 1000}

    async def restore(self, snapshot: Snapshot) -> Mapping[str, float]:
        """As `start`, from a snapshot that has been found good."""
        with ExitStack() as held:
            try:
                held.enter_context(in_use(snapshot.layout))
            except OSError as error:
                raise EngineStartFailed(f"the snapshot is gone: {error.strerror}") from error
            return await self._restore(snapshot)

    async def _restore(self, snapshot: Snapshot) -> Mapping[str, float]:
        began = time.perf_counter()
        layout, manifest = snapshot.layout, snapshot.manifest
        self._patience = Patience.of_snapshot(self._spec, snapshot)
        if self._runtime.criu is None:
            raise EngineStartFailed("there is no CRIU")
        try:
            sandbox, folder = await self._claim_sandbox(layout)
            furnished = time.perf_counter()
            self._read_ahead(self._runtime.criu, layout)
            criu = self._runtime.criu.moved(self._runtime.sandboxes.layout.inside)
            code = await sandbox.help(
                criu.restore_command(SNAPSHOT / layout.images.name, WORK, manifest.pipe),
                env={"PATH": os.defpath},
                cwd=WORK,
                log=WORK / _CRIU_OUTPUT,
                main=manifest.main_pid,
            )
        except (OSError, SandboxError) as error:
            raise EngineStartFailed(f"the engine cannot be restored: {error}") from error
        if code:
            raise EngineStartFailed(f"CRIU ended with {code}: {_tail(folder.work / program.RESTORE_LOG)}")
        self._main_pid = manifest.main_pid
        return {"sandbox": (furnished - began) * 1000, "restore": (time.perf_counter() - furnished) * 1000}

    def _keep_model_classes(self) -> None:
        """Keep what vLLM found out about the model's class. Called before the engine serves a request."""
        if self._folder is None:
            return
        source, kept = self._folder.box / _MODEL_CLASSES, self._runtime.folders.model_classes(self._spec.id)
        if kept.exists() or not source.is_dir():
            return
        draft = kept.with_name(f".{self._folder.path.name}")
        try:
            draft.mkdir(mode=0o700, parents=True)
            copy_regular_files(source, draft)
            draft.rename(kept)
        except OSError:  # another engine was first, or the disk is full: the next one finds it out again
            shutil.rmtree(draft, ignore_errors=True)

    def _put_model_classes(self, folder: RunFolder) -> None:
        kept = self._runtime.folders.model_classes(self._spec.id)
        if kept.is_dir():
            target = folder.box / _MODEL_CLASSES
            target.mkdir(parents=True)
            copy_regular_files(kept, target, uid=self.uid)
            for part in (target, *target.relative_to(folder.box).parents):
                if self.uid is not None:
                    os.chown(folder.box / part, self.uid, self.uid)

    def _read_ahead(self, criu: Criu, layout: Layout) -> None:
        """Begin to read what the wake will need. Not earlier: the sandbox is prepared in this process too."""
        first = chain(criu.files, layout.images.iterdir())
        outside = self.layout().with_binds({SNAPSHOT: layout.folder}).outside
        self._reading = asyncio.create_task(asyncio.to_thread(read_ahead, layout.folder, outside, first))

    async def _claim_sandbox(self, layout: Layout | None = None) -> tuple[Sandbox, RunFolder]:
        """Take a spare sandbox and prepare it for an engine, with the files of a snapshot if given."""
        folder = self._folder = self._runtime.folders.make(self.uid)
        if layout is None:
            copying = asyncio.create_task(asyncio.to_thread(self._put_model_classes, folder))
        else:
            copying = asyncio.create_task(
                asyncio.to_thread(copy_regular_files, layout.box, folder.box, uid=self.uid)
            )
        try:
            warm = await self._runtime.sandboxes.take()
            self._sandbox, self._pipe = warm.sandbox, warm.pipe
            self._ended = asyncio.create_task(warm.sandbox.wait())
            warm.sandbox.limit(self._runtime.limits(self._spec))
            await self._output.read(warm.output)
            if self._isolated:
                await self._mount(warm.sandbox, folder, layout)
        finally:
            await copying
        return warm.sandbox, folder

    async def _mount(self, sandbox: Sandbox, folder: RunFolder, layout: Layout | None) -> None:
        """Show the engine's folders in the sandbox, and those of a snapshot if given."""
        mounts, copies = self._mounts(folder), {}
        if layout is not None:
            mounts.append(Mount(layout.folder, SNAPSHOT))
            copies[SHM] = SNAPSHOT / layout.shm.name
        if self._runtime.folders.criu_cache.is_file():
            shutil.copyfile(self._runtime.folders.criu_cache, folder.work / program.PROBE_CACHE.name)
            copies[program.PROBE_CACHE] = WORK / program.PROBE_CACHE.name
        await sandbox.mount_engine(mounts, self._runtime.owners, uid=self.uid, copies=copies)

    def _mounts(self, folder: RunFolder) -> list[Mount]:
        mounts = [
            Mount(folder.box, ENGINE_DIR, writable=True),
            Mount(folder.work, WORK, writable=True),
            Mount(folder.adapters, ADAPTERS),
            *self._seen().mounts,
        ]
        if not on_cpu():  # what is compiled for a GPU takes minutes, and is kept for the model's next engine
            cache = self._runtime.folders.cache_of(self._spec.id, self.uid)
            mounts.append(Mount(cache, CACHE, writable=True, executable=True))
        return mounts

    def _file_advice(self) -> str:
        """What may be the reason that an engine did not start; empty if nothing is known."""
        path = unreadable(self._seen()) if self._isolated else None
        if path is None or self._runtime.owners.works:
            return ""
        return (
            f"\nThe engine's user may not read {path}, and the platform has no id-mapped mounts: "
            "`chmod --recursive o+rX` on the model's folder lets it"
        )

    async def _answers(self) -> None:
        """Wait until the socket answers. Raises `EngineStartFailed` when the processes have ended."""
        ended = self._ended
        while ended is not None and not await self.healthy():
            await asyncio.wait((ended,), timeout=_POLL_S)
            if ended.done():
                raise EngineStartFailed(f"{await self.ended()}\n{self.last_words()}")

    async def wake(self, canary: Mapping[str, Any] | None) -> Mapping[str, float]:
        """After a restore: new random seeds. The milliseconds until the engine answered.

        The canary is asked beside the first requests, whose answers the engine holds back until `proof`.
        Raises `EngineBroken`.
        """
        began = time.perf_counter()
        status, answer = await call(self._socket, "POST", "/torpor/wake", canary, timeout_s=_WAKE_TIMEOUT_S)
        self._runtime.sandboxes.refill()
        if status != 200:
            raise EngineBroken(f"the engine refused to wake: {answer}")
        return {"answer": (time.perf_counter() - began) * 1000}

    async def proof(self) -> Mapping[str, float]:
        """Wait for the canary: the milliseconds that it took. Raises `EngineBroken` when it is not fit."""
        limit_s = self._patience.proof_s(_WAKE_TIMEOUT_S)
        status, answer = await call(self._socket, "GET", "/torpor/proof", timeout_s=limit_s)
        if status != 200:
            raise EngineBroken(f"its canary differs: {answer}")
        return {"canary": answer["ms"]}

    async def canary(self) -> Mapping[str, Any]:
        """Record what `wake` compares. Raises `EngineBroken`."""
        limit_s = self._patience.canary_s
        status, answer = await call(self._socket, "POST", "/torpor/canary", timeout_s=limit_s)
        if status != 200:
            raise EngineBroken(f"the engine records no canary: {answer}")
        return dict(answer)

    async def rehearse(self) -> None:
        """Load an adapter that changes nothing, and unload it. Raises `EngineBroken`."""
        await self.control("rehearse", self._patience.request_s)

    async def control(self, what: str, limit_s: float | None = None) -> None:
        """Ask something of the engine itself (`engines.vllm_process.control`). Raises `EngineBroken`."""
        limit_s = limit_s or self._patience.sleep_s
        status, answer = await call(self._socket, "POST", f"/torpor/{what}", timeout_s=limit_s)
        if status != 200:
            raise EngineBroken(f"the engine refuses to {what}: {answer}")

    async def signal_all(self, number: int) -> None:
        """Send a signal to all processes of the engine. Raises `EngineBroken`."""
        if self._sandbox is None:
            raise EngineBroken("the engine was never started")
        try:
            await self._sandbox.signal_all(number)
        except SandboxError as error:
            raise EngineBroken(f"the engine has ended: {error}") from error

    async def pause(self) -> None:
        """Freeze it: its KV cache is given back, adapters go. No request may run. Raises `EngineBroken`."""
        await self._runtime.driver.pause(self)
        await self.adapters.sweep()

    async def resume(self) -> None:
        """End a pause: return when it answers. Raises `EngineBroken`."""
        await self._runtime.driver.resume(self)
        if not await self.healthy():
            raise EngineBroken("the engine does not answer after its pause")

    async def dump(self, layout: Layout) -> Dumped:
        """Write the images of its processes into ``layout``; they run on. No request may run.

        Raises `DumpFailed`, `EngineBroken`.
        """
        runtime, folder, sandbox = self._runtime, self._folder, self._sandbox
        if runtime.criu is None or folder is None or sandbox is None:
            raise DumpFailed("there is no CRIU, or no engine")
        await self.control("sleep")
        moment = monotonic_s()
        try:
            await sandbox.mount_engine([Mount(layout.folder, SNAPSHOT, writable=True)], runtime.owners)
            code = await sandbox.help(
                runtime.criu.moved(runtime.sandboxes.layout.inside).dump_command(
                    self._main_pid, SNAPSHOT / layout.images.name, WORK, runtime.root.source / ON_DUMP
                ),
                env={"PATH": os.defpath},
                cwd=WORK,
                log=WORK / _CRIU_OUTPUT,
                real_uid=self.uid,
            )
            if code:
                raise DumpFailed(f"CRIU ended with {code}: {_tail(folder.work / program.DUMP_LOG)}")
            await sandbox.unmount(SNAPSHOT)
            await asyncio.to_thread(copy_regular_files, folder.box, layout.box)
        except (OSError, SandboxError) as error:
            raise DumpFailed(f"the engine cannot be dumped: {error}") from error
        return Dumped(self._main_pid, self._pipe, moment)

    async def ended(self) -> str:
        """Wait until no process of it is left. Says in a line how it ended, and why if that is known."""
        if self._ended is None:
            return "the engine was never started"
        code = await asyncio.shield(self._ended)
        await self._output.close(_OUTPUT_TIMEOUT_S)
        kills = None if self._sandbox is None else self._sandbox.memory_kills
        if kills is None:
            return end_text(code, self._spec, self._output, killed=kernel_kills() > self._kernel_kills)
        limit = self._runtime.limits(self._spec).memory_bytes if kills.at_limit else None
        return end_text(code, self._spec, self._output, killed=kills.processes > 0, limit=limit)

    @property
    def canary_failed(self) -> bool:
        """Whether it has ended because its canary differed."""
        return self._ended is not None and self._ended.done() and self._ended.result() == UNFIT

    async def healthy(self) -> bool:
        """Whether it answers its health check in time."""
        try:
            status, _ = await call(self._socket, "GET", "/health", timeout_s=self._health_timeout_s)
        except EngineBroken:
            return False
        return status == 200

    def memory_bytes(self) -> int:
        """PSS of all its processes. Reads /proc for some milliseconds: call it in a thread."""
        return process_tree.memory_bytes(self._sandbox.pids()) if self._sandbox else 0

    def pids(self) -> list[int]:
        """The engine's own processes, without those of its sandbox."""
        return self._sandbox.inner_pids() if self._sandbox else []

    def last_words(self) -> str:
        """The last lines of its output."""
        return self._output.last_words()

    async def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, after ``grace_s`` SIGKILL for all; then its folder is removed. Idempotent.

        Goes on in the background when the caller is cancelled.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace_s))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        if self._sandbox is not None and self._ended is not None:
            if grace_s > 0:
                self._sandbox.terminate()
                await asyncio.wait((self._ended,), timeout=grace_s)
            if not self._ended.done():
                await self._sandbox.kill()
            await self._ended
        await self._output.close(_OUTPUT_TIMEOUT_S)
        if self._folder is not None:
            await self._folder.remove()


def _tail(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if "RLIMIT_NOFILE" not in line]
    except OSError:
        return "it left no log"
    return "\n".join(lines[-_TOLD_LINES:])
