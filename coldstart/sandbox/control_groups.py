"""A control group for each engine: limits of memory and of tasks, and a share of the processors.

Groups are made below the one that this process is in, and nowhere else. Each controller is looked for in the
unified hierarchy (v2) first, then among the older ones (v1), of which each has a mount of its own. Sources:
the kernel's ``admin-guide/cgroup-v2`` and ``admin-guide/cgroup-v1``, proc(5) on ``mountinfo``.
"""

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("memory", "pids", "cpu")
_PREFIX = "torpor-engine-"
_LEAF = "torpor-gateway"
_PROCESSES, _ENABLED = "cgroup.procs", "cgroup.subtree_control"
_SHARES, _WEIGHT = 1024, 100  # of an ordinary process, v1 and v2
_REMOVE_TIMEOUT_S = 2.0
_POLL_S = 0.01
_FULL = 0.95  # of a limit: charges are made in batches


@dataclass(frozen=True, slots=True)
class Limits:
    """What the processes of a group may use together.

    ``memory_bytes``: page cache included; None for no limit. ``tasks``: processes and threads.
    ``cpu_weight``: the share of the processors when they are all busy; 1.0 is that of an ordinary process.
    """

    memory_bytes: int | None
    tasks: int
    cpu_weight: float


@dataclass(frozen=True, slots=True)
class MemoryKills:
    """How many processes of a group were ended for want of memory; whether at the group's own limit."""

    processes: int
    at_limit: bool


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """This process's own group in a hierarchy, and the controllers that are used there."""

    folder: Path
    unified: bool
    controllers: tuple[str, ...]


class ControlGroup:
    """The group of one engine, a folder in each hierarchy."""

    def __init__(self, parts: Sequence[_Hierarchy]) -> None:
        self._parts = tuple(parts)

    @property
    def entries(self) -> tuple[Path, ...]:
        """The files that a process writes ``0`` to, to enter the group with all that it will start."""
        return tuple(part.folder / _PROCESSES for part in self._parts)

    def limit(self, limits: Limits) -> None:
        """Set what its processes may use from now on. Raises OSError."""
        for part in self._parts:
            for name, value in _settings(part, limits):
                (part.folder / name).write_text(value)

    def kill(self) -> None:
        """End all of its processes, where the kernel can do that (v2)."""
        for part in self._parts:
            if part.unified:
                with contextlib.suppress(OSError):
                    (part.folder / "cgroup.kill").write_text("1")

    def memory_kills(self) -> MemoryKills | None:
        """What the kernel has ended for want of memory; None if it does not tell."""
        for part in self._parts:
            if "memory" in part.controllers:
                with contextlib.suppress(OSError, ValueError):
                    return _unified_kills(part.folder) if part.unified else _older_kills(part.folder)
        return None

    def remove(self) -> None:
        """Remove it, when its processes have ended. Raises OSError if one is left after two seconds."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        for part in self._parts:
            while not _removed(part.folder):
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, f"processes are left in the control group {part.folder}")
                time.sleep(_POLL_S)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:  # a process that has just ended, or one that has not
            return False
        raise
    return True


def _unified_kills(folder: Path) -> MemoryKills:
    events = _values(folder / "memory.events")
    return MemoryKills(events["oom_kill"], events["oom"] > 0)


def _older_kills(folder: Path) -> MemoryKills:
    limit, most = (
        int((folder / f"memory.{name}").read_text()) for name in ("limit_in_bytes", "max_usage_in_bytes")
    )
    return MemoryKills(_values(folder / "memory.oom_control").get("oom_kill", 0), most >= _FULL * limit)


def _values(path: Path) -> dict[str, int]:
    """The lines of a file, each a key and a number."""
    return {key: int(value) for key, value in (line.split() for line in path.read_text().splitlines())}


def _settings(part: _Hierarchy, limits: Limits) -> Iterator[tuple[str, str]]:
    """The files to write, in this order, and their texts."""
    if "memory" in part.controllers:
        if part.unified:
            yield "memory.max", "max" if limits.memory_bytes is None else str(limits.memory_bytes)
            if (part.folder / "memory.swap.max").exists():
                yield "memory.swap.max", "max" if limits.memory_bytes is None else "0"
        else:
            text = str(-1 if limits.memory_bytes is None else limits.memory_bytes)
            yield "memory.limit_in_bytes", text
            if (part.folder / "memory.memsw.limit_in_bytes").exists():  # with swap: never below the other
                yield "memory.memsw.limit_in_bytes", text
    if "pids" in part.controllers:
        yield "pids.max", str(limits.tasks)
    if "cpu" in part.controllers:
        if part.unified:
            yield "cpu.weight", str(min(10_000, max(1, round(limits.cpu_weight * _WEIGHT))))
        else:
            yield "cpu.shares", str(min(262_144, max(2, round(limits.cpu_weight * _SHARES))))


class ControlGroups:
    """The groups below this process's own. ``missing``: why a controller cannot be had, by its name."""

    def __init__(self, hierarchies: Sequence[_Hierarchy], missing: Mapping[str, str]) -> None:
        self._hierarchies = tuple(hierarchies)
        self.missing = missing

    @classmethod
    def find(
        cls,
        controllers: Sequence[str] = CONTROLLERS,
        mountinfo: Path = Path("/proc/self/mountinfo"),
        membership: Path = Path("/proc/self/cgroup"),
    ) -> "ControlGroups":
        """Look for the controllers, and try each hierarchy by making and removing a group.

        In the unified hierarchy, a group with processes cannot have groups with limits: this process moves
        into a group of its own below its present one, if no other process is there.
        """
        try:
            mounts = list(_mounts(mountinfo.read_text()))
            groups = list(_memberships(membership.read_text()))
        except OSError as error:
            return cls((), dict.fromkeys(controllers, f"control groups cannot be read: {error.strerror}"))
        missing = dict.fromkeys(controllers, "the kernel has no such controller, or it is not mounted")
        hierarchies = []
        for named, path in groups:
            mount = next((mount for mount in mounts if mount.serves(named)), None)
            if mount is None:
                continue
            usable = cls._usable(mount, path, named, [name for name in controllers if name in missing])
            if isinstance(usable, _Hierarchy):
                hierarchies.append(usable)
                for name in usable.controllers:
                    del missing[name]
            else:
                missing |= usable
        return cls(hierarchies, missing)

    @staticmethod
    def _usable(
        mount: "_Mount", path: str, named: frozenset[str], needed: Sequence[str]
    ) -> _Hierarchy | dict[str, str]:
        """The hierarchy with those controllers that it has; the reasons if it has them and they fail."""
        folder = mount.folder(path)
        if not named:
            needed = [
                name
                for name in needed
                if folder is not None and name in _words(folder / "cgroup.controllers")
            ]
        else:
            needed = [name for name in needed if name in named]
        if not needed:
            return {}
        if folder is None:
            return dict.fromkeys(needed, f"this process's group {path} is not below {mount.point}")
        try:
            if not named:
                _enable(folder, needed)
            trial = folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            trial.mkdir()
            trial.rmdir()
        except OSError as error:
            reason = f"no group can be made in {folder}: {error.strerror}"
            if error.errno == errno.EBUSY:
                reason = f"other processes are in the gateway's control group {folder}"
            return dict.fromkeys(needed, reason)
        return _Hierarchy(folder, not named, tuple(needed))

    def create(self, name: str) -> ControlGroup:
        """A new group, which no process is in yet. Raises OSError; nothing is left then."""
        created: list[_Hierarchy] = []
        try:
            for hierarchy in self._hierarchies:
                folder = hierarchy.folder / f"{_PREFIX}{os.getpid()}-{name}"
                folder.mkdir()
                created.append(_Hierarchy(folder, hierarchy.unified, hierarchy.controllers))
        except OSError:
            ControlGroup(created).remove()
            raise
        return ControlGroup(created)

    def sweep(self) -> None:
        """Remove the empty groups of processes that have ended."""
        for hierarchy in self._hierarchies:
            for folder in hierarchy.folder.glob(f"{_PREFIX}*"):
                pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
                if not Path("/proc", pid).exists():
                    with contextlib.suppress(OSError):
                        folder.rmdir()


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy: the group that its mount point shows, and the controllers (none: unified)."""

    root: str
    point: Path
    controllers: frozenset[str]

    def serves(self, controllers: frozenset[str]) -> bool:
        return controllers == self.controllers if not controllers else bool(controllers & self.controllers)

    def folder(self, group: str) -> Path | None:
        """Where a group is; None if the mount does not show it."""
        if not Path(group).is_relative_to(self.root):
            return None
        return self.point / Path(group).relative_to(self.root)


def _mounts(text: str) -> Iterator[_Mount]:
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, point = (_unescaped(word) for word in fields.split(" ")[3:5])
        controllers = frozenset(options.split(",")) if kind == "cgroup" else frozenset()
        yield _Mount(root, Path(point), controllers)


def _unescaped(word: str) -> str:
    """mountinfo writes a space as an octal escape."""
    return word.encode("latin-1", "backslashreplace").decode("unicode_escape") if "\\" in word else word


def _memberships(text: str) -> Iterator[tuple[frozenset[str], str]]:
    """The controllers of each hierarchy (none: unified) and this process's group in it; unified first."""
    lines = [line.split(":", 2) for line in text.splitlines()]
    for _, controllers, path in sorted(lines, key=lambda line: line[1] != ""):
        yield frozenset(filter(None, controllers.split(","))), path


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _enable(folder: Path, controllers: Sequence[str]) -> None:
    """Let groups below have limits. Raises OSError: EBUSY if other processes are in the group."""
    if set(controllers) <= set(_words(folder / _ENABLED)):
        return
    text = " ".join(f"+{name}" for name in controllers)
    try:
        (folder / _ENABLED).write_text(text)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _moved_to_leaf(folder, lambda: (folder / _ENABLED).write_text(text))


def _moved_to_leaf(folder: Path, enable: Callable[[], object]) -> None:
    leaf = folder / _LEAF
    with contextlib.suppress(FileExistsError):
        leaf.mkdir()
    (leaf / _PROCESSES).write_text(str(os.getpid()))
    try:
        enable()
    except OSError:
        (folder / _PROCESSES).write_text(str(os.getpid()))
        with contextlib.suppress(OSError):
            leaf.rmdir()
        raise
