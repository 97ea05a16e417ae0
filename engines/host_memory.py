"""How much memory this machine, or the control group that the process is in, has."""

from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def total_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """The machine's memory, or the lowest limit of the process's control groups if that is less.

    Raises OSError if the system does not tell.
    """
    return min([_meminfo(proc, "MemTotal"), *_limits(proc, cgroups)])


def available_bytes(proc: Path = _PROC) -> int:
    """What can be used now without swapping. Raises OSError if the system does not tell."""
    return _meminfo(proc, "MemAvailable")


def _meminfo(proc: Path, name: str) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError("the system does not tell how much memory it has")


def _limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """The folders of the control groups (version 1 or 2), from the process's own up to the root."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            base, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        # In a container the path may be the host's: then only the root of what is mounted here tells.
        for folder in (group, *group.parents):
            try:
                yield int((base / folder / name).read_text())
            except (OSError, ValueError):  # missing, or "max"
                continue
