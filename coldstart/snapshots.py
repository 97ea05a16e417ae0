"""The snapshots on disk: made beside the others, published by one rename, and checked before they are used.

::

    {folder}/{model}/{created}-{random}/    manifest.json, memory, images/, shm/, box/
    {folder}/{model}/.new-{random}/         one that is being made
"""

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coldstart.manifest import FileCheck, Manifest, StaleSnapshot, monotonic_s
from coldstart.remap import MEMORY

_DRAFT = ".new-"
_MANIFEST = "manifest.json"
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
    """The snapshots of one host. Methods that read much are meant for a thread."""

    def __init__(self, folder: Path) -> None:
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
        found = []
        for folder in sorted(self._folder.glob(f"{model_id or '*'}/[!.]*"), reverse=True):
            try:
                found.append(Snapshot(folder.name, Layout(folder), Manifest.read(folder / _MANIFEST)))
            except StaleSnapshot as error:
                _logger.warning("snapshot %s of %s is not used: %s", folder.name, folder.parent.name, error)
        return sorted(found, key=lambda snapshot: snapshot.manifest.model_id)

    def current(self, model_id: str) -> Snapshot | None:
        """The newest one of the model."""
        return next(iter(self.list(model_id)), None)

    def require(self, snapshot: Snapshot, taken_on: Mapping[str, str], *, digest: bool = False) -> None:
        """Raises `StaleSnapshot` unless it may be restored. ``digest``: read every byte of it."""
        manifest = snapshot.manifest
        manifest.require(taken_on, monotonic_s())
        folder = snapshot.layout.folder
        files = {folder / name: identity for name, identity in manifest.files.items()}
        self._checked.require(files, digest=digest)
        self._checked.require({Path(name): known for name, known in manifest.sources.items()}, digest=digest)

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
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.time_ns() % 10**9:09d}"
        final = layout.folder.with_name(name)
        layout.folder.rename(final)
        _sync_folder(final.parent)
        return Snapshot(name, Layout(final), manifest)

    def discard(self, layout: Layout) -> None:
        """Delete one that was not published."""
        shutil.rmtree(layout.folder, ignore_errors=True)

    def remove(self, snapshot: Snapshot) -> None:
        """Delete a published one. Trees that were restored from it keep what they have mapped."""
        doomed = snapshot.layout.folder.with_name(f"{_DRAFT}{secrets.token_hex(4)}")
        snapshot.layout.folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def collect(self, model_id: str) -> int:
        """Delete all of the model's but the newest. Their number."""
        doomed = sorted((self._folder / model_id).glob("[!.]*"), reverse=True)[1:]
        for folder in doomed:
            shutil.rmtree(folder, ignore_errors=True)
        return len(doomed)

    async def verified(self, snapshot: Snapshot, taken_on: Mapping[str, str]) -> str | None:
        """Read every byte, in a thread: None, or why it must not be used."""
        try:
            await asyncio.to_thread(self.require, snapshot, taken_on, digest=True)
        except StaleSnapshot as error:
            return str(error)
        return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
