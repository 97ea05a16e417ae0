"""The folders that engines run in: private, short enough for Unix sockets, and gone when their engine is.

::

    {run_dir}/engine-{random}/box/         the engine's own; in memory, if it has a user of its own
    {run_dir}/engine-{random}/adapters/    files of adapters; an engine in a sandbox cannot write there
    {run_dir}/engine-{random}/work/        CRIU's logs, which an engine in a sandbox does not see
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from coldstart.sandbox.mounts import mount_tmpfs, unmount
from engines.errors import EngineError

# A Unix socket's path has at most 107 bytes; vLLM puts sockets named by a UUID (36 bytes) into the folder.
_BOX = "box"
_LONGEST_FOLDER = 107 - len(f"/{_BOX}/") - 36 - 2
_BOX_BYTES = 256 << 20
_PREFIX = "engine-"
_RANDOM = 8


class RunFoldersInUse(EngineError):
    """Another process runs engines there."""


class RunFolder:
    """One engine's folders (mode 0700), locked for as long as this process lives."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.box = path / _BOX
        self.adapters = path / "adapters"
        self.work = path / "work"
        self._lock: int | None = lock

    async def remove(self) -> None:
        """Delete it with all that it holds. Idempotent."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        await asyncio.to_thread(_remove, self.path)
        os.close(lock)


class RunFolders:
    """Makes the folders below ``run_dir``, or below a short private one in the system's temp directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir.absolute()
        self._base = _base(self.run_dir)
        self._lock: int | None = None
        self.criu_cache = self.run_dir / "criu.kdat"
        """What CRIU found out about the kernel."""

    def open(self) -> None:
        """Make what is missing, and clear away what an earlier process left behind.

        Raises `RunFoldersInUse` when another host has them, OSError.
        """
        for folder in (self.run_dir, self._base):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_private(folder)
        self._lock = os.open(self.run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise RunFoldersInUse(f"{self.run_dir} is in use by another host") from None
        for leftover in self._base.glob(f"{_PREFIX}*"):
            _remove_dead(leftover)

    def close(self) -> None:
        """Let another host have them; remove the folder in the temp directory when it is empty."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._base != self.run_dir:
            try:
                self._base.rmdir()
            except OSError:
                return

    def model_classes(self, model_id: str) -> Path:
        """What vLLM has found out about the model's class, which takes it seconds (``modelinfos``)."""
        return self.run_dir / "model-classes" / model_id

    def cache_of(self, model_id: str, uid: int | None) -> Path:
        """The folder for what engines of a model keep from one start to the next. Raises OSError."""
        folder = self.run_dir / "cache" / model_id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if uid is not None:
            os.chown(folder, uid, uid)
        return folder

    def make(self, uid: int | None = None) -> RunFolder:
        """New folders for an engine of the user ``uid``; None: of this process's. Raises OSError."""
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._base))
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = RunFolder(path, lock)
        try:
            for part in (folder.box, folder.work, folder.adapters):
                part.mkdir(mode=0o700)
            if uid is not None:
                os.chown(folder.adapters, uid, uid)
                mount_tmpfs(folder.box, _BOX_BYTES, uid)
        except OSError:
            _remove(path)
            os.close(lock)
            raise
        return folder


def _base(run_dir: Path) -> Path:
    if len(os.fsencode(run_dir)) + 1 + len(_PREFIX) + _RANDOM <= _LONGEST_FOLDER:
        return run_dir
    digest = hashlib.blake2s(os.fsencode(run_dir), digest_size=6).hexdigest()
    return Path(tempfile.gettempdir()) / f"torpor-{os.getuid()}-{digest}"


def _require_private(folder: Path) -> None:
    """Others who may write to the temp directory must not have put something of theirs in our place."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    folder.chmod(0o700)


def _remove_dead(folder: Path) -> None:
    """Remove the folder unless a living process holds its lock."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    unmount(folder / _BOX)
    shutil.rmtree(folder, ignore_errors=True)
