"""What separates engines from their host on this machine, tried out."""

import asyncio
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from coldstart.criu.program import Criu, CriuMissing
from coldstart.sandbox.control_groups import ControlGroups
from coldstart.sandbox.namespaces import Isolation, probe
from coldstart.sandbox.root_layout import RootLayout
from coldstart.sandbox.spares import SandboxPool
from coldstart.sleep_drivers import CpuDriver, SleepDriver
from engines import wire
from engines.lifecycle import criu_check
from engines.lifecycle.engine_root import host_root, sandbox_root
from engines.lifecycle.process import Runtime
from engines.lifecycle.run_folders import RunFolders


async def prepare_runtime(
    folders: RunFolders,
    criu: Criu | None,
    driver: SleepDriver,
    *,
    spare_sandboxes: int = 0,
    memory_bytes: int | None = None,
) -> tuple[Runtime, str | None]:
    """Where engines run here, and why they cannot sleep in snapshots, if they cannot.

    Tries everything out that engines will need, which takes about a second. ``folders`` are open. The caller
    closes the runtime's sandboxes. ``memory_bytes``: what all engines together may use.
    """
    root = sandbox_root(None if criu is None else criu.folder)
    isolation = await _probed(root.layout)
    if not isolation.namespaces:
        root = host_root()
    groups = await asyncio.to_thread(ControlGroups.find)
    groups.sweep()
    for name, reason in groups.missing.items():
        isolation = isolation.without(f"{name} control group", reason)
    sandboxes = SandboxPool(isolation, root.layout, folders.run_dir, spare_sandboxes, groups)
    runtime = Runtime(folders, sandboxes, None, driver, root, memory_bytes=memory_bytes)
    if criu is None:
        return runtime, "there is no CRIU"
    earlier = _CHECKED.get(criu)
    if earlier is not None and earlier.before == isolation:
        sandboxes.isolation = earlier.after
        folders.criu_cache.write_bytes(earlier.probe_cache)
        return replace(runtime, criu=criu), None
    try:
        sandboxes.isolation = await criu_check.check(criu, runtime)
    except CriuMissing as error:
        return runtime, str(error)
    _CHECKED[criu] = _Checked(isolation, sandboxes.isolation, folders.criu_cache.read_bytes())
    return replace(runtime, criu=criu), None


@dataclass(frozen=True, slots=True)
class _Checked:
    """What a check of CRIU has found: the isolation before and after it, and what it learnt of the kernel."""

    before: Isolation
    after: Isolation
    probe_cache: bytes


# A kernel does not change under a process: what has worked is not tried again by the same one. A start of the
# gateway with `require_sandbox` would otherwise try everything twice.
_CHECKED: dict[Criu, _Checked] = {}
_PROBED: dict[bytes, Isolation] = {}


async def _probed(layout: RootLayout) -> Isolation:
    key = layout.description()
    if key not in _PROBED:
        isolation = await probe(layout, call_filter=wire.on_cpu())
        if not isolation.namespaces:
            return isolation
        _PROBED[key] = isolation
    return _PROBED[key]


@dataclass(frozen=True, slots=True)
class Examination:
    """What isolates engines here, and why they cannot sleep in snapshots, if they cannot."""

    isolation: Isolation
    no_snapshots: str | None


async def examine(criu: Criu | None) -> Examination:
    """Try everything out that a host of engines would, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="torpor-examine-") as scratch:
        folders = RunFolders(Path(scratch))
        folders.open()
        try:
            runtime, reason = await prepare_runtime(folders, criu, CpuDriver())
            return Examination(runtime.isolation, reason)
        finally:
            folders.close()


def missing_text(isolation: Isolation) -> str:
    """What is missing and why, in a line; empty if nothing is."""
    return "; ".join(f"{name} ({reason})" for name, reason in isolation.missing.items())
