"""Trying out, in a sandbox, whether CRIU works on this host."""

import asyncio
import os
import shutil
from pathlib import Path

from coldstart.criu.program import PROBE_CACHE, Criu, CriuMissing
from coldstart.sandbox.namespaces import Isolation, SandboxError
from coldstart.sandbox.spares import create_warm_sandbox
from engines.lifecycle.run_folders import RunFolders
from engines.wire import ENGINE_DIR

_TIMEOUT_S = 30.0
_OUTPUT = "check.out"


async def check(criu: Criu, isolation: Isolation, folders: RunFolders) -> None:
    """Run ``criu check``, and keep what it found out about the kernel: a restore need not ask again.

    Raises `CriuMissing` with CRIU's own words.
    """
    if not isolation.namespaces:
        raise CriuMissing(f"there are no namespaces to restore in: {isolation.reason}")
    folder = folders.make()
    try:
        warm = await create_warm_sandbox(isolation, folder.path)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await warm.sandbox.mount_engine(binds={ENGINE_DIR: folder.path})
                code = await warm.sandbox.help(
                    criu.check_command(), env={"PATH": os.defpath}, cwd=ENGINE_DIR, log=folder.path / _OUTPUT
                )
                if code:
                    raise CriuMissing(f"`criu check` says: {_last_line(folder.path / _OUTPUT)}")
                await warm.sandbox.mount_engine(copies={ENGINE_DIR / PROBE_CACHE.name: PROBE_CACHE})
                shutil.copyfile(folder.path / PROBE_CACHE.name, folders.criu_cache)
        finally:
            await warm.close()
    except (OSError, SandboxError) as error:
        raise CriuMissing(f"`criu check` cannot be run: {error}") from error
    finally:
        await folder.remove()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else "nothing"
