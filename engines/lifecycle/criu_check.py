"""Trying out, in sandboxes, whether CRIU works on this host with processes like an engine's."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coldstart.criu import program
from coldstart.criu.program import PROBE_CACHE, Criu, CriuMissing
from coldstart.sandbox.mounts import Mount
from coldstart.sandbox.namespaces import Isolation, SandboxError, uid_of
from coldstart.sandbox.spares import WarmSandbox, create_warm_sandbox
from engines.lifecycle.engine_root import WORK
from engines.lifecycle.process import ON_DUMP, Runtime
from engines.lifecycle.run_folders import RunFolder
from engines.wire import ENGINE_DIR, SNAPSHOT

_TIMEOUT_S = 30.0
_OUTPUT = "check.out"
_NAME = "criu check"
_ENV = {"PATH": os.defpath}


async def check(criu: Criu, runtime: Runtime) -> Isolation:
    """Run ``criu check``, then dump and restore a small process with a user and a filter of its own.

    Keeps what CRIU found out about the kernel: a restore need not ask again. Returns the isolation under
    which snapshots work: without the filter if only that fails, as in a gateway that runs under a filter
    itself. Raises `CriuMissing` with CRIU's own words.
    """
    isolation = runtime.isolation
    if not isolation.namespaces:
        raise CriuMissing(f"there are no namespaces to restore in: {isolation.missing['namespaces']}")
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await _examine_kernel(criu, runtime)
            reason = await _try(criu, runtime, isolation)
            if reason is None:
                return isolation
            unfiltered = isolation.without("call filter", reason, call_filter=False)
            if not isolation.call_filter or await _try(criu, runtime, unfiltered) is not None:
                raise CriuMissing(f"a process cannot be dumped and restored: {reason}")
            return unfiltered
    except (OSError, SandboxError) as error:
        raise CriuMissing(f"`criu check` cannot be run: {error}") from error


async def _examine_kernel(criu: Criu, runtime: Runtime) -> None:
    runtime.folders.criu_cache.unlink(missing_ok=True)  # an earlier kernel's
    async with _sandbox(runtime, runtime.isolation) as (warm, folder):
        command = criu.moved(runtime.sandboxes.layout.inside).check_command()
        code = await warm.sandbox.help(command, env=_ENV, cwd=WORK, log=WORK / _OUTPUT)
        if code:
            raise CriuMissing(f"`criu check` says: {_last_error(folder.work / _OUTPUT)}")
        copies = {WORK / PROBE_CACHE.name: PROBE_CACHE}
        await warm.sandbox.mount_engine([], runtime.owners, copies=copies)
        shutil.copyfile(folder.work / PROBE_CACHE.name, runtime.folders.criu_cache)


async def _try(criu: Criu, runtime: Runtime, isolation: Isolation) -> str | None:
    """Dump a process and restore it: None, or CRIU's last words."""
    placed, uid = criu.moved(runtime.sandboxes.layout.inside), uid_of(_NAME)
    snapshot = runtime.folders.make()
    try:
        images = SNAPSHOT / "images"
        for name in ("images", "shm"):
            (snapshot.box / name).mkdir()
        draft = Mount(snapshot.box, SNAPSHOT, writable=True)
        async with _sandbox(runtime, isolation, draft) as (warm, folder):
            command = ["/bin/sh", "-c", "echo; exec sleep 1000"]
            pid = await warm.sandbox.run(command, env=_ENV, cwd=ENGINE_DIR, uid=uid)
            await asyncio.to_thread(warm.output.readline)
            command = placed.dump_command(pid, images, WORK, runtime.root.source / ON_DUMP)
            log = WORK / _OUTPUT
            if await warm.sandbox.help(command, env=_ENV, cwd=WORK, log=log, real_uid=uid):
                return _last_error(folder.work / program.DUMP_LOG)
            pipe = warm.pipe
        async with _sandbox(runtime, isolation, draft) as (warm, folder):
            command = placed.restore_command(images, WORK, pipe)
            if await warm.sandbox.help(command, env=_ENV, cwd=WORK, log=log, main=pid):
                return _last_error(folder.work / program.RESTORE_LOG)
        return None
    finally:
        await snapshot.remove()


@asynccontextmanager
async def _sandbox(
    runtime: Runtime, isolation: Isolation, *more: Mount
) -> AsyncIterator[tuple[WarmSandbox, RunFolder]]:
    """An empty sandbox with an engine's folders, and these on the host."""
    uid = uid_of(_NAME)
    folder = runtime.folders.make(uid)
    try:
        warm = await create_warm_sandbox(isolation, runtime.sandboxes.layout, folder.path)
        try:
            probed = folder.work / PROBE_CACHE.name
            copies: dict[Path, Path] = {}
            if runtime.folders.criu_cache.is_file():
                shutil.copyfile(runtime.folders.criu_cache, probed)
                copies[PROBE_CACHE] = WORK / probed.name
            mounts = [
                Mount(folder.box, ENGINE_DIR, writable=True),
                Mount(folder.work, WORK, writable=True),
                *more,
            ]
            await warm.sandbox.mount_engine(mounts, runtime.owners, uid=uid, copies=copies)
            yield warm, folder
        finally:
            await warm.close()
    finally:
        await folder.remove()


def _last_error(log: Path) -> str:
    """CRIU's last error, or whatever it said last."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["nothing"])[-1]
