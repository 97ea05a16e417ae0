"""Keeps a folder from other users: its owner, its mode, and the modes of everything in it."""

import logging
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_logger = logging.getLogger("torpor.storage")

OTHERS = 0o077
"""What a mode grants to the group and to others."""
_OTHERS_WRITE = 0o022
_MARKS = frozenset({"lock", "pepper", "torpor.db", "credentials.env", "gateway.log", "criu"})
"""Names of which every data directory that has been used, or prepared, has some."""
_LOST_FOUND = "lost+found"
"""Root's own folder at the top of a file system, here of one that holds a data directory and nothing else."""


class DataDirectoryError(Exception):
    """The data directory cannot be used; the message is one line that says why and what to do."""


class NotPrivate(DataDirectoryError):
    """Another user owns the data directory, or could have put something into it."""


@contextmanager
def private_umask() -> Iterator[None]:
    """Files that this process and its children make have no bits for the group and for others."""
    before = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def open_private(folder: Path) -> int:
    """A descriptor (``O_PATH``) of a folder that only its owner can write to, for root or that owner.

    Raises `NotPrivate` and `DataDirectoryError`.
    """
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DataDirectoryError(f"{folder} cannot be opened: {error.strerror}") from None
    status = os.fstat(descriptor)
    user = os.geteuid()
    fault = None
    if user not in (0, status.st_uid):
        fault = _foreign(folder, status)
    elif status.st_mode & _OTHERS_WRITE:
        fault = f"others may write to {folder} (mode {_shown(status)}): run `chmod 700 {folder}`"
    if fault is not None:
        os.close(descriptor)
        raise NotPrivate(fault)
    return descriptor


def make_private(folder: Path) -> None:
    """Make the folder if it is missing, mode 0700, and close it and all that it holds to other users.

    Modes that are too open are corrected, which the log says. Symbolic links are not followed, but for
    ``folder`` itself. Raises `NotPrivate` if another user owns the folder, the link that leads to it, or
    something that was put there while others could write, or if the folder is open to others and serves
    another purpose (``/tmp``, ``/var/lib``), and `DataDirectoryError` if it cannot be made. A folder that is
    refused for what it holds at its top keeps its modes.
    """
    try:
        with private_umask():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        link = folder.lstat()
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DataDirectoryError(f"the data directory {folder} cannot be used: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if link.st_uid not in (0, os.geteuid()):
            raise NotPrivate(_foreign(folder, link))
        if status.st_uid != os.geteuid():
            raise NotPrivate(_foreign(folder, status))
        if status.st_mode & OTHERS:
            _check_own(folder, status, set(os.listdir(descriptor)) - {_LOST_FOUND})
            os.fchmod(descriptor, _without_others(status))
        closed = _close_content(folder, descriptor, trusted=not status.st_mode & _OTHERS_WRITE)
    finally:
        os.close(descriptor)
    _say(folder, status, closed)


def _check_own(folder: Path, status: os.stat_result, names: set[str]) -> None:
    """Refuse a folder that holds other files: raises `NotPrivate`. Its other users need it as it is."""
    if names and _MARKS.isdisjoint(names):
        raise NotPrivate(
            f"{folder} is open to other users (mode {_shown(status)}) and holds files that are not Torpor's, "
            f"such as {min(names)!r}: set [storage] data_dir to a directory of its own"
        )
    if status.st_mode & _OTHERS_WRITE:
        for name in names:
            path = folder / name
            with suppress(FileNotFoundError):
                content = path.lstat()
                if content.st_uid != os.geteuid():
                    raise NotPrivate(_foreign(path, content))


def _say(folder: Path, status: os.stat_result, closed: int) -> None:
    files = f"{closed} of its files and folders" if closed else "none of its files"
    if status.st_mode & OTHERS:
        _logger.warning(
            "the data directory %s was open to other users (mode %s): it is private now, and %s had to be "
            "closed as well; if others use this host, replace the keys that were kept there",
            folder,
            _shown(status),
            files,
        )
    elif closed:
        _logger.warning(
            "the data directory %s is private; %s had open modes and are private now", folder, files
        )
    parent = folder.resolve().parent
    parents = parent.stat().st_mode
    if parents & stat.S_IWOTH and not parents & stat.S_ISVTX:
        _logger.warning(
            "everybody may rename what is in %s, so also the data directory: run `chmod o-w %s`",
            parent,
            parent,
        )


def _close_content(folder: Path, descriptor: int, *, trusted: bool) -> int:
    """Take the bits of the group and of others from everything below; returns from how many.

    ``trusted``: no other user could write to the folder.
    """
    closed = 0
    for folder_path, folders, files, place_descriptor in os.fwalk(
        ".", dir_fd=descriptor, follow_symlinks=False
    ):
        if folder_path == "." and _LOST_FOUND in folders:
            folders.remove(_LOST_FOUND)
        for name in folders + files:
            path = folder / folder_path / name
            with suppress(FileNotFoundError):  # a running gateway removes files
                closed += _close(path, name, place_descriptor, trusted=trusted)
    return closed


def _close(path: Path, name: str, folder: int, *, trusted: bool) -> bool:
    """Whether the file had such bits. Works on the very file that was examined, whatever is renamed."""
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        user = os.geteuid()
        if status.st_uid != user and not (trusted and user == 0):
            raise NotPrivate(_foreign(path, status))
        if stat.S_ISLNK(status.st_mode) or not status.st_mode & OTHERS:
            return False
        os.chmod(f"/proc/self/fd/{descriptor}", _without_others(status))
        return True
    finally:
        os.close(descriptor)


def _without_others(status: os.stat_result) -> int:
    return stat.S_IMODE(status.st_mode) & ~OTHERS


def _foreign(path: Path, status: os.stat_result) -> str:
    owner, user = _name(status.st_uid), _name(os.geteuid())
    return (
        f"{path} belongs to {owner}, and Torpor runs as {user}: run it as {owner}, "
        f"give the file to {user} with chown, or set [storage] data_dir to another directory"
    )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _shown(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
