"""What a tree of processes consists of and the memory that it uses, read from /proc."""

import os
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _parents() -> dict[int, int]:
    parents: dict[int, int] = {}
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        try:
            stat = (_PROC / entry.name / "stat").read_bytes()
        except OSError:  # it ended while we looked
            continue
        parents[int(entry.name)] = int(stat.rpartition(b")")[2].split()[1])
    return parents


def descendants(pid: int) -> list[int]:
    """``pid`` and every process below it, as this process sees them; empty when it does not exist."""
    parents = _parents()
    if pid not in parents:
        return []
    children: dict[int, list[int]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    pids: list[int] = []
    pending = [pid]
    while pending:
        current = pending.pop()
        pids.append(current)
        pending.extend(children.get(current, ()))
    return pids


def memory_bytes(pids: Iterable[int]) -> int:
    """Proportional set size of the processes together, in bytes; resident size where there is no PSS."""
    return sum(_process_memory(pid) for pid in pids)


def _process_memory(pid: int) -> int:
    try:
        with (_PROC / str(pid) / "smaps_rollup").open("rb") as rollup:
            for line in rollup:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int((_PROC / str(pid) / "statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
