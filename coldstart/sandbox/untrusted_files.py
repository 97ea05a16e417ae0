"""Files in a folder that a sandboxed process may write to, handled without following its links.

The process may put a symbolic link where a file or a folder is expected, at any moment. So each folder is
opened by its name in the one above it, with O_NOFOLLOW, and everything is done relative to that descriptor.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_regular_files(source: Path, target: Path, left_out: Callable[[str], bool]) -> None:
    """Copy folders and regular files with their modes and times into the empty folder ``target``.

    Links, sockets, pipes and devices are not copied, nor are files for whose name ``left_out`` returns True.
    Raises OSError, also if a file is replaced by a link while it is copied.
    """
    for folder, _, names, descriptor in os.fwalk(source, follow_symlinks=False):
        inside = target / Path(folder).relative_to(source)
        inside.mkdir(mode=0o700, exist_ok=inside == target)
        for name in names:
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and not left_out(name):
                _copy(name, descriptor, inside / name)


def _copy(name: str, folder: int, target: Path) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(reading, "rb") as source:
        status = os.fstat(reading)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{name} was replaced while it was copied: it is not a regular file")
        with os.fdopen(os.open(target, _NEW_FILE_FLAGS, 0o600), "wb") as copy:
            shutil.copyfileobj(source, copy)
            os.fchmod(copy.fileno(), stat.S_IMODE(status.st_mode))
            copy.flush()
            os.utime(copy.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


def put_files(sources: Iterable[Path], folder: Path, group: str, name: str) -> None:
    """Copy files into the new folder ``folder/group/name``; ``group`` is made if it is missing.

    Raises FileNotFoundError if a source is missing, FileExistsError if ``name`` exists, and OSError if a link
    stands in the place of ``folder`` or ``group``.
    """
    with _opened(folder) as parent:
        with suppress(FileExistsError):
            os.mkdir(group, 0o700, dir_fd=parent)
        with _opened(group, parent) as members:
            os.mkdir(name, 0o700, dir_fd=members)
            with _opened(name, members) as target:
                for source in sources:
                    with source.open("rb") as reading:
                        descriptor = os.open(source.name, _NEW_FILE_FLAGS, 0o600, dir_fd=target)
                        with os.fdopen(descriptor, "wb") as copy:
                            shutil.copyfileobj(reading, copy)


def remove_folder(folder: Path, group: str, name: str | None = None) -> None:
    """Remove ``folder/group/name``, or all of ``folder/group``. Nothing happens if a link is in its place."""
    with suppress(OSError), _opened(folder) as parent:
        if name is None:
            shutil.rmtree(group, ignore_errors=True, dir_fd=parent)
        else:
            with _opened(group, parent) as members:
                shutil.rmtree(name, ignore_errors=True, dir_fd=members)


@contextmanager
def _opened(folder: str | Path, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(folder, _FOLDER_FLAGS, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
