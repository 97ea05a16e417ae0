"""Content that is named by its digest: written whole or not at all, kept once, gone after its last use.

The layout of the folder: ``incoming/`` for what is being written, ``content/ab/abcd.../`` for what is kept,
``leaving/`` for what is being removed. What a crash leaves in the first and the last is removed at the next
start.
"""

import asyncio
import os
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path


class ContentStore:
    """Folders of files below ``folder``, which one process holds at a time. Made by `open_store`.

    Where a disk fails or is full, methods raise OSError.
    """

    def __init__(self, folder: Path) -> None:
        self._incoming = folder / "incoming"
        self._content = folder / "content"
        self._leaving = folder / "leaving"
        # Nothing may be removed between the decision to do so and the renaming, and nothing put there.
        self._moving = asyncio.Lock()
        self._pinned: Counter[str] = Counter()

    def place(self, digest: str) -> Path:
        """The folder of the content with this digest, whether it is there or not."""
        return self._content / digest[:2] / digest

    def begin(self, used: Collection[str]) -> list[str]:
        """Make the folders and remove what is left over; returns what is used and not there. Blocks."""
        for left in (self._incoming, self._leaving):
            shutil.rmtree(left, ignore_errors=True)
        for folder in (self._incoming, self._content, self._leaving):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in self._content.glob("*/*"):
            if entry.name not in used:
                shutil.rmtree(entry)
        return [digest for digest in used if not self.place(digest).is_dir()]

    @asynccontextmanager
    async def incoming(self) -> AsyncIterator[Path]:
        """A new folder, and the end of it, unless its content was kept."""
        folder = self._incoming / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @asynccontextmanager
    async def kept(self, folder: Path, digest: str, used: Callable[[str], bool]) -> AsyncIterator[Path]:
        """Make the incoming folder the content with this digest, durably; yields where it is.

        Content that is there already stays as it is. It is not removed within the block; after it, it is,
        unless it is ``used`` by then.
        """
        self._pinned[digest] += 1
        try:
            async with self._moving:
                await asyncio.to_thread(self._keep, folder, digest)
            yield self.place(digest)
        finally:
            self._pinned[digest] -= 1
            if not self._pinned[digest]:
                del self._pinned[digest]
            await self.drop(digest, used)

    async def drop(self, digest: str, used: Callable[[str], bool]) -> bool:
        """Remove the content, unless it is ``used`` or being registered; whether it did."""
        async with self._moving:
            if self._pinned[digest] or used(digest):
                return False
            leaving = self._leaving / secrets.token_hex(16)
            try:
                self.place(digest).rename(leaving)
            except FileNotFoundError:
                return False
        await asyncio.to_thread(shutil.rmtree, leaving, ignore_errors=True)
        return True

    def _keep(self, folder: Path, digest: str) -> None:
        target = self.place(digest)
        if target.is_dir():
            return
        for file in folder.iterdir():
            _sync(file)
        _sync(folder)
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700)
            _sync(self._content)
        folder.rename(target)
        _sync(target.parent)


def _sync(path: Path) -> None:
    """Until what is written to the file, or the folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def open_store(folder: Path, used: Collection[str]) -> tuple[ContentStore, list[str]]:
    """The store, and which digests that are ``used`` it lacks. Raises OSError."""
    store = ContentStore(folder)
    return store, await asyncio.to_thread(store.begin, used)
