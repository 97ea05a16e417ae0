"""The snapshots on disk: made beside the others, published by one rename, and checked before they are used.

::

    {folder}/{model}/{number}-{created}/    manifest.json, memory, images/, shm/, box/
    {folder}/{model}/.new-{random}/         one that is being made
"""

import asyncio
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coldstart.criu.remap import MEMORY
from coldstart.snapshots.digester import digests
from coldstart.snapshots.manifest import FileCheck, Manifest, StaleSnapshot, file_names, monotonic_s

_DRAFT = ".new-"
_MANIFEST = "manifest.json"
_IN_USE_S = 30.0
_POLL_S = 0.05
_DIGITS = 6
_logger = logging.getLogger("torpor.snapshot")


@dataclass(frozen=True, slots=True)
class Layout:
    """The places in a snapshot's folder."""

    folder: Path

    @property
    def images(self) -> Path:
        """CRIU's images."""
        return self.folder / "images"

    @property
    def memory(self) -> Path:
        """The file that a restored tree maps."""
        return self.folder / MEMORY

    @property
    def shm(self) -> Path:
        """What the tree kept in /dev/shm."""
        return self.folder / "shm"

    @property
    def box(self) -> Path:
        """What the tree kept in its run folder."""
        return self.folder / "box"

    def disk_bytes(self) -> int:
        """What it takes on disk."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published snapshot."""

    id: str
    layout: Layout
    manifest: Manifest


class SnapshotStore:
    """The snapshots of one host. Methods that read much are meant for a thread.

    ``inspect_interval_s``: how often one that is in use is to be read in full; 0: never.
    """

    def __init__(self, folder: Path, inspect_interval_s: float = 0.0) -> None:
        self.inspect_interval_s = inspect_interval_s
        self._folder = folder
        self._checked = FileCheck()

    def open(self) -> None:
        """Make the folder, and clear away what was never finished. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for draft in self._folder.glob(f"*/{_DRAFT}*"):
            shutil.rmtree(draft, ignore_errors=True)

    def list(self, model_id: str | None = None) -> list[Snapshot]:
        """The readable ones, the newest of each model first."""
        snapshots = []
        for folder in self._folders(model_id or "*"):
            try:
                snapshots.append(Snapshot(folder.name, Layout(folder), Manifest.read(folder / _MANIFEST)))
            except StaleSnapshot as error:
                _logger.warning("snapshot %s of %s is not used: %s", folder.name, folder.parent.name, error)
        return sorted(snapshots, key=lambda snapshot: snapshot.manifest.model_id)

    def current(self, model_id: str) -> Snapshot | None:
        """The newest one of the model."""
        return next(iter(self.list(model_id)), None)

    def require(self, snapshot: Snapshot, taken_on: Mapping[str, str], *, digest: bool = False) -> None:
        """Check that a snapshot may be restored; raise `StaleSnapshot` if not. ``digest``: of all bytes."""
        manifest = snapshot.manifest
        manifest.require(taken_on, monotonic_s())
        folder = snapshot.layout.folder
        files = {folder / name: identity for name, identity in manifest.files.items()}
        self._checked.require(files, digest=digest)
        if manifest.source is not None:
            source = Path(manifest.source)
            differing = file_names(source) ^ manifest.sources.keys()
            if differing:
                raise StaleSnapshot(f"{min(differing)} has come or gone in the folder of the weights")
            sources = {source / name: identity for name, identity in manifest.sources.items()}
            self._checked.require(sources, digest=digest)

    def draft(self, model_id: str) -> Layout:
        """A new folder to make a snapshot in: `publish` or `discard` it. Raises OSError."""
        layout = Layout(self._folder / model_id / f"{_DRAFT}{secrets.token_hex(4)}")
        layout.folder.mkdir(mode=0o700, parents=True)
        for folder in (layout.images, layout.shm, layout.box):
            folder.mkdir(mode=0o700)
        return layout

    def publish(self, layout: Layout, manifest: Manifest) -> Snapshot:
        """Give it its name: from now on it is the model's current one. Raises OSError."""
        manifest.write(layout.folder / _MANIFEST)
        newest = max(map(_number, self._folders(manifest.model_id)), default=0)
        created = time.strftime("%Y%m%dT%H%M%S", time.gmtime(manifest.created_at))
        name = f"{newest + 1:0{_DIGITS}d}-{created}"
        final = layout.folder.with_name(name)
        layout.folder.rename(final)
        _sync_folder(final.parent)
        return Snapshot(name, Layout(final), manifest)

    def discard(self, layout: Layout) -> None:
        """Delete one that was not published."""
        shutil.rmtree(layout.folder, ignore_errors=True)

    def collect(self, model_id: str, keep: str | None = None) -> tuple[str, ...]:
        """Delete all of the model's but the one that is kept, readable or not. Their ids.

        Trees that were restored from them keep what they have mapped; a restore that is under way is waited
        for.
        """
        doomed = [folder for folder in self._folders(model_id) if folder.name != keep]
        for folder in doomed:
            _await_restores(folder)
            gone = folder.with_name(f"{_DRAFT}{secrets.token_hex(4)}")
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        return tuple(folder.name for folder in doomed)

    def _folders(self, model_id: str) -> Sequence[Path]:
        """The published snapshots, those of a model from the newest to the oldest."""
        folders = self._folder.glob(f"{model_id}/[!.]*")
        return sorted(folders, key=lambda folder: (_number(folder), folder.name), reverse=True)

    async def inspect(self, snapshot: Snapshot) -> str | None:
        """Read every byte of it slowly, by a process of low priority: None, or what has changed.

        Finds what no file's identity tells: a page that was flipped on the disk or in the page cache. Raises
        `DigestFailed`.
        """
        folder, recorded = snapshot.layout.folder, snapshot.manifest.files
        current = await digests(folder / name for name in recorded)
        for name, identity in recorded.items():
            digest = current[folder / name]
            if isinstance(digest, OSError):
                return f"{name} cannot be read: {digest}"
            if digest != identity.digest:
                return f"the content of {name} has changed"
        return None

    async def verified(self, snapshot: Snapshot, taken_on: Mapping[str, str]) -> str | None:
        """Read every byte, in a thread: None, or why it must not be used."""
        try:
            await asyncio.to_thread(self.require, snapshot, taken_on, digest=True)
        except StaleSnapshot as error:
            return str(error)
        return None


def _number(folder: Path) -> int:
    """Count up, whatever the clock does."""
    digits = folder.name.partition("-")[0]
    return int(digits) if digits.isdecimal() and len(digits) == _DIGITS else 0


@contextmanager
def in_use(layout: Layout) -> Iterator[None]:
    """Protect the snapshot from deletion while it is being restored. Raises OSError."""
    descriptor = os.open(layout.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _await_restores(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _IN_USE_S
        while not _is_free(descriptor) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
