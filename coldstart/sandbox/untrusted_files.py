"""Files in a folder that a sandboxed process may write to, handled without following its links.

The process may put a symbolic link where a file or a folder is expected, at any moment. So each folder is
opened by its name in the one above it, with O_NOFOLLOW, and everything is done relative to that descriptor.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_regular_files(source: Path, target: Path, *, uid: int | None = None) -> None:
    """Copy folders and regular files with their modes and times into the empty folder ``target``.

    Links, sockets, pipes and devices are not copied. ``uid``: the user and group whom the copies belong to,
    if not this process's. Raises OSError, also if a file is replaced by a link while it is copied.
    """
    for folder, _, names, descriptor in os.fwalk(source, follow_symlinks=False):
        inside = target / Path(folder).relative_to(source)
        if inside != target:
            inside.mkdir(mode=0o700)
            if uid is not None:
                os.chown(inside, uid, uid)
        for name in names:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                _copy(name, descriptor, inside / name, uid)


def _copy(name: str, folder: int, target: Path, uid: int | None) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(reading, "rb") as source:
        status = os.fstat(reading)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name} was replaced while it was copied: it is not a regular file")
        with os.fdopen(os.open(target, _NEW_FILE_FLAGS, 0o600), "wb") as copy:
            shutil.copyfileobj(source, copy)
            if uid is not None:
                os.fchown(copy.fileno(), uid, uid)
            os.fchmod(copy.fileno(), status.st_mode & 0o777)
            copy.flush()
            os.utime(copy.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


def put_files(
    sources: Iterable[Path], folder: Path, group: str, name: str, *, uid: int | None = None
) -> None:
    """Copy files into the new folder ``folder/group/name``; ``group`` is made if it is missing.

    ``uid``: the user and group whom the new folder and the files belong to, if not this process's. Raises
    FileNotFoundError if a source is missing, FileExistsError if ``name`` exists, and OSError if a link stands
    in the place of ``folder`` or ``group``.
    """
    with _opened(folder) as parent:
        with suppress(FileExistsError):
            os.mkdir(group, 0o700, dir_fd=parent)
        with _opened(group, parent) as members:
            os.mkdir(name, 0o700, dir_fd=members)
            with _opened(name, members) as target:
                if uid is not None:
                    os.fchown(target, uid, uid)
                for source in sources:
                    with source.open("rb") as reading:
                        descriptor = os.open(source.name, _NEW_FILE_FLAGS, 0o600, dir_fd=target)
                        with os.fdopen(descriptor, "wb") as copy:
                            shutil.copyfileobj(reading, copy)
                            if uid is not None:
                                os.fchown(descriptor, uid, uid)


def remove_folder(folder: Path, group: str, name: str | None = None) -> None:
    """Remove ``folder/group/name``, or all that ``folder/group`` holds, but not the group itself.

    Nothing happens if a link is in its place.
    """
    with suppress(OSError), _opened(folder) as parent, _opened(group, parent) as members:
        for member in os.listdir(members) if name is None else (name,):
            shutil.rmtree(member, ignore_errors=True, dir_fd=members)


@contextmanager
def _opened(folder: str | Path, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(folder, _FOLDER_FLAGS, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
