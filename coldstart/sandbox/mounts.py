"""Folders and files of the host as detached mounts, which a sandbox mounts that cannot see the host."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coldstart.sandbox import init
from coldstart.sandbox.init import Libc

_LIBC = Libc()
# A file system that cannot map owners says so with these.
_UNMAPPED = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of the host that the sandbox is to see at ``target``.

    ``owner``: the uid and gid whose files belong to the user ``uid`` in the sandbox, if the file system can
    show them so (an id-mapped mount, mount_setattr(2)); None: owners stay as they are. A folder that is
    ``executable`` may hold programs and libraries.
    """

    source: Path
    target: Path
    writable: bool = False
    executable: bool = False
    owner: tuple[int, int] | None = None

    def open(self, owners: "OwnerMaps", uid: int | None) -> int:
        """A descriptor of the detached mount; the caller closes it. Raises OSError."""
        attributes = init.MOUNT_ATTR_NOSUID | init.MOUNT_ATTR_NODEV
        attributes |= 0 if self.writable else init.MOUNT_ATTR_RDONLY
        attributes |= 0 if self.executable else init.MOUNT_ATTR_NOEXEC
        mapped = None if self.owner is None or uid is None else owners.find(self.owner, uid)
        if mapped is not None:
            try:
                return _LIBC.open_tree(str(self.source), attributes, mapped)
            except OSError as error:
                if error.errno not in _UNMAPPED:
                    raise
                owners.mapped = False
        return _LIBC.open_tree(str(self.source), attributes)


@contextlib.contextmanager
def opened(mounts: Sequence[Mount], owners: "OwnerMaps", uid: int | None) -> Iterator[list[int]]:
    """Descriptors of the detached mounts, in their order. Raises OSError."""
    with contextlib.ExitStack() as stack:
        trees = []
        for mount in mounts:
            trees.append(mount.open(owners, uid))
            stack.callback(os.close, trees[-1])
        yield trees


class OwnerMaps:
    """User namespaces that show one user's files as another's: made once, kept open."""

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._namespaces: dict[tuple[tuple[int, int], int], int | None] = {}
        self.mapped = True
        """False once a file system could not map owners."""

    def find(self, owner: tuple[int, int], uid: int) -> int | None:
        """A descriptor of the namespace in which ``owner`` appears as the user and group ``uid``.

        None if the platform forbids such namespaces. Blocks for some 30 ms the first time.
        """
        key = (owner, uid)
        with self._making:
            if key not in self._namespaces:
                try:
                    self._namespaces[key] = _user_namespace(owner, uid)
                except (OSError, subprocess.SubprocessError):
                    self._namespaces[key] = None
            return self._namespaces[key]

    def prepare(self, mounts: Iterable[Mount], uid: int | None) -> None:
        """Make what is missing for these mounts. Blocks: call it in a thread."""
        for mount in mounts:
            if mount.owner is not None and uid is not None:
                self.find(mount.owner, uid)

    def has(self, mounts: Iterable[Mount], uid: int | None) -> bool:
        """Whether `prepare` has nothing to make."""
        owners = {mount.owner for mount in mounts if mount.owner is not None and uid is not None}
        return all((owner, uid) in self._namespaces for owner in owners)

    @property
    def works(self) -> bool:
        """Whether every namespace that was needed could be made, and every mount be mapped."""
        return self.mapped and None not in self._namespaces.values()

    def close(self) -> None:
        """Close the namespaces. Mounts that were made with them stay."""
        for descriptor in self._namespaces.values():
            if descriptor is not None:
                os.close(descriptor)
        self._namespaces.clear()


def _user_namespace(owner: tuple[int, int], uid: int) -> int:
    """A namespace that lives as long as the descriptor: its only process ends here."""
    command = [sys.executable, "-I", "-S", init.__file__, "user_namespace"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603
        if process.stdout is None or process.stdin is None or process.stdout.readline() != b"\n":
            raise OSError(errno.EPERM, "a user namespace cannot be made")
        folder = Path("/proc", str(process.pid))
        (folder / "uid_map").write_text(f"{owner[0]} {uid} 1")
        (folder / "gid_map").write_text(f"{owner[1]} {uid} 1")
        return os.open(folder / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)


def mount_tmpfs(target: Path, size_bytes: int, uid: int) -> None:
    """Mount a file system in memory, for files that are not to be programs. Raises OSError."""
    flags = init.MS_NOSUID | init.MS_NODEV | init.MS_NOEXEC
    options = f"mode=0700,size={size_bytes},nr_inodes=10000,uid={uid},gid={uid}"
    _LIBC.mount("torpor", str(target), "tmpfs", flags, options)


def unmount(target: Path) -> None:
    """Take a mount away, also if it is still in use. Nothing happens if nothing is mounted there."""
    with contextlib.suppress(OSError):
        _LIBC.unmount(str(target))
