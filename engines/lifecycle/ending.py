"""How an engine's processes ended, and why: what the exit status, the kernel and its output tell."""

import signal
from pathlib import Path

from engines import host_memory
from engines.lifecycle.output import EngineOutput
from engines.sizing import gib
from engines.spec import ModelSpec

_VMSTAT = Path("/proc/vmstat")
_COUNTER = "oom_kill"


def exit_text(code: int) -> str:
    """An exit status of the sandbox in words: 128 and a signal's number stand for that signal."""
    if code > 128:
        try:
            return f"the engine was ended by {signal.Signals(code - 128).name}"
        except ValueError:
            pass
    return f"the engine ended with exit status {code}"


def kernel_kills(vmstat: Path = _VMSTAT) -> int:
    """How many processes the kernel has killed since boot for lack of memory; 0 if it does not tell."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{_COUNTER} ")), 0)


def end_text(
    code: int, spec: ModelSpec, output: EngineOutput, *, killed: bool, limit: int | None = None
) -> str:
    """How it ended in a line, with the cause if that is known.

    ``killed``: whether the kernel has killed a process of it for want of memory; ``limit``: the limit in
    bytes that it had reached then, if it was its own.
    """
    if code and killed:
        reason = out_of_memory_text(spec) if limit is None else limit_text(limit)
    else:
        reason = output.cause() if code else ""
    return f"{exit_text(code)}: {reason}" if reason else exit_text(code)


def limit_text(limit: int) -> str:
    """That an engine used more memory than it may, in bytes."""
    return (
        f"it used more than its limit of {gib(limit)} of memory, twice what an engine of this model is "
        "expected to need and at most [engines] memory_gib: lower kv_cache_gib or max_model_len"
    )


def out_of_memory_text(spec: ModelSpec) -> str:
    """That the memory did not suffice, in figures."""
    try:
        total, available = host_memory.total_bytes(), host_memory.available_bytes()
    except OSError:
        there = "unknown"
    else:
        there = f"{gib(available)} of {gib(total)} available now"
    needed = "" if spec.sizing is None else f"; the engine needs {spec.sizing.text()}"
    return (
        f"out of memory, the kernel killed it ({there}{needed}): lower kv_cache_gib, max_model_len or "
        "[engines] memory_gib, or use less memory beside the engines"
    )
