"""Rewriting CRIU's images so that a restore maps memory where a stock one copies it.

Stock CRIU fills a restored process's memory by reading its pages from the image: at 1.5 us for each page that
the kernel must first find and zero, a gigabyte takes most of a second. Here the pages move into one file,
``memory``, laid out in the order of their addresses, and each piece of memory becomes a private mapping of
that file: the kernel reads a page when it is touched, from the page cache, which all replicas of a snapshot
share until they write to it.

Two kinds of memory are rewritten. Private anonymous memory, in runs of present pages (small gaps are filled
with zeros, which is what they read as). And private file mappings with changed pages (the relocated data of
libraries): the file's bytes with the changed pages over them. Stacks that grow, executable and shared memory,
and the kernel's own pages stay with CRIU.

The danger: on a private file mapping ``MADV_DONTNEED`` brings back the file's bytes and not zeros. Who asks
for zeros that way must not have been remapped: tests/coldstart/test_remap.py holds the allocators to that.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from coldstart import images
from coldstart.images import InvalidImage, Message

PAGE = 4096
MEMORY = "memory"

# Fields of CRIU's messages, by the names that it gives them.
_MM_VMAS = 14
_VMA_START, _VMA_END, _VMA_PGOFF, _VMA_SHMID, _VMA_PROT, _VMA_FLAGS, _VMA_STATUS = 1, 2, 3, 4, 5, 6, 7
_VMA_FDFLAGS = 10
_MAP_ADDRESS, _MAP_COMPAT_PAGES, _MAP_IN_PARENT, _MAP_FLAGS, _MAP_PAGES = 1, 2, 3, 4, 5
_HEAD_PAGES_ID = 1
_FILE_TYPE, _FILE_ID, _FILE_REG = 1, 2, 3
_REG_ID, _REG_FLAGS, _REG_POSITION, _REG_OWNER, _REG_NAME, _REG_SIZE, _REG_MODE = 1, 2, 3, 5, 6, 8, 10
_REG_BUILD_ID = 11

_STATUS_REGULAR, _STATUS_HEAP = 1 << 0, 1 << 5
_STATUS_FILE_PRIVATE, _STATUS_ANON_PRIVATE = 1 << 6, 1 << 9
_PROT_EXEC = 4
_MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x20, 0x100
_REGULAR_FILE = 1

# A gap of so many absent pages within a mapping is filled; a longer one splits it.
_GAP_PAGES = 64
_COPY = 1 << 20


@dataclass(slots=True)
class _Run:
    """Pages that follow each other in memory, and in the image from ``offset`` (bytes) on."""

    address: int
    pages: int
    offset: int
    flags: int

    @property
    def end(self) -> int:
        return self.address + self.pages * PAGE


@dataclass(slots=True)
class _Vma:
    message: Message
    runs: list[_Run] = field(default_factory=list)

    @property
    def start(self) -> int:
        return self.message.get(_VMA_START)

    @property
    def end(self) -> int:
        return self.message.get(_VMA_END)


@dataclass(frozen=True, slots=True)
class Remapped:
    """What came out: bytes that are mapped and copied at each restore, and the number of mappings."""

    mapped_bytes: int
    copied_bytes: int
    mappings: int


def remap(folder: Path, memory: Path, seen_as: Path) -> Remapped:
    """Rewrite the images in ``folder`` in place, the memory going to the new file ``memory``.

    ``seen_as``: the path under which a restored process will find that file. Raises `InvalidImage`, OSError.
    """
    files = _Files(folder)
    mapped = copied = mappings = 0
    with memory.open("xb") as out:
        for path in sorted(folder.glob("mm-*.img"), key=lambda path: int(path.stem.partition("-")[2])):
            process = _Process(folder, int(path.stem.partition("-")[2]), files, out)
            process.rewrite()
            mapped += process.mapped
            copied += process.copied
            mappings += process.mappings
        out.truncate(-(-out.seek(0, os.SEEK_END) // PAGE) * PAGE)
    files.add_memory(memory, seen_as)
    return Remapped(mapped, copied, mappings)


class _Files:
    """CRIU's table of open files."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "files.img"
        self._magic, self._entries = images.read(self._path)
        self._regular: dict[int, Message] = {}
        for entry in self._entries:
            blob = entry.blob(_FILE_REG)
            if blob is not None:
                self._regular[entry.get(_FILE_ID)] = Message.parse(blob)
        if not self._regular:
            raise InvalidImage("files.img names no regular file")
        self.memory_id = max(entry.get(_FILE_ID) for entry in self._entries) + 1

    def path(self, file_id: int) -> Path | None:
        regular = self._regular.get(file_id)
        name = None if regular is None else regular.blob(_REG_NAME)
        return None if name is None else Path(os.fsdecode(name))

    def add_memory(self, memory: Path, seen_as: Path) -> None:
        memory.chmod(0o400)
        status = memory.stat()
        like = next(iter(self._regular.values()))
        regular = like.with_values(
            {
                _REG_ID: self.memory_id,
                _REG_FLAGS: os.O_RDONLY,
                _REG_POSITION: 0,
                _REG_NAME: os.fsencode(seen_as),
                _REG_SIZE: status.st_size,
                _REG_MODE: status.st_mode,
                _REG_BUILD_ID: None,
            }
        )
        entry = Message().with_values(
            {_FILE_TYPE: _REGULAR_FILE, _FILE_ID: self.memory_id, _FILE_REG: regular.encode()}
        )
        images.write(self._path, self._magic, [*self._entries, entry])


class _Process:
    """The memory of one process."""

    def __init__(self, folder: Path, pid: int, files: _Files, out: BinaryIO) -> None:
        self._mm_path = folder / f"mm-{pid}.img"
        self._map_path = folder / f"pagemap-{pid}.img"
        self._files = files
        self._out = out
        self._mm_magic, mm = images.read(self._mm_path)
        self._map_magic, entries = images.read(self._map_path)
        if len(mm) != 1 or not entries:
            raise InvalidImage(f"{self._mm_path.name} or {self._map_path.name} is incomplete")
        self._mm, self._head = mm[0], entries[0]
        self._pages_path = folder / f"pages-{self._head.get(_HEAD_PAGES_ID)}.img"
        self._vmas = [_Vma(Message.parse(blob)) for blob in self._mm.blobs(_MM_VMAS)]
        self._vmas.sort(key=lambda vma: vma.start)
        self._assign(entries[1:])
        self.mapped = self.copied = self.mappings = 0

    def _assign(self, entries: list[Message]) -> None:
        """Give each mapping the runs of pages that lie in it."""
        starts = [vma.start for vma in self._vmas]
        offset = 0
        for entry in entries:
            if entry.get(_MAP_IN_PARENT):
                raise InvalidImage("the images continue earlier ones")
            address = entry.get(_MAP_ADDRESS)
            left = entry.get(_MAP_PAGES) or entry.get(_MAP_COMPAT_PAGES)
            while left:
                vma = self._vmas[bisect_right(starts, address) - 1]
                count = min(left, (vma.end - address) // PAGE)
                if count <= 0:
                    raise InvalidImage("a page lies in no mapping")
                vma.runs.append(_Run(address, count, offset, entry.get(_MAP_FLAGS)))
                address += count * PAGE
                offset += count * PAGE
                left -= count

    def rewrite(self) -> None:
        vmas: list[Message] = []
        kept: list[_Run] = []
        with ExitStack() as stack:
            pages = stack.enter_context(self._pages_path.open("rb"))
            for vma in self._vmas:
                status = vma.message.get(_VMA_STATUS)
                plain = status & ~_STATUS_HEAP
                if not vma.runs or self._left_alone(vma):
                    vmas.append(vma.message)
                    kept += vma.runs
                elif plain == _STATUS_REGULAR | _STATUS_ANON_PRIVATE:
                    vmas += self._remap_anonymous(vma, pages)
                elif plain == _STATUS_REGULAR | _STATUS_FILE_PRIVATE and (new := self._overlay(vma, pages)):
                    vmas.append(new)
                else:
                    vmas.append(vma.message)
                    kept += vma.runs
            self._keep(kept, pages)
        self.mappings = len(vmas)
        mm = self._mm.with_repeated(_MM_VMAS, [vma.encode() for vma in vmas])
        images.write(self._mm_path, self._mm_magic, [mm])

    @staticmethod
    def _left_alone(vma: _Vma) -> bool:
        message = vma.message
        return bool(message.get(_VMA_PROT) & _PROT_EXEC or message.get(_VMA_FLAGS) & _MAP_GROWSDOWN)

    def _remap_anonymous(self, vma: _Vma, pages: BinaryIO) -> Iterator[Message]:
        """The pieces of the mapping: those with pages come from the file, the others stay as they are."""
        at = vma.start
        for runs in _spans(vma.runs):
            first, last = runs[0].address, runs[-1].end
            if at < first:
                yield vma.message.with_values({_VMA_START: at, _VMA_END: first})
            base = self._begin()
            for run in runs:
                self._out.seek(base + run.address - first)
                self._copy(pages, run.offset, run.pages * PAGE)
            yield self._from_memory(vma.message, first, last, base)
            at = last
        if at < vma.end:
            yield vma.message.with_values({_VMA_START: at, _VMA_END: vma.end})

    def _overlay(self, vma: _Vma, pages: BinaryIO) -> Message | None:
        """The mapped file's bytes with the changed pages over them, or None where the file is no help."""
        path = self._files.path(vma.message.get(_VMA_SHMID))
        offset, length = vma.message.get(_VMA_PGOFF), vma.end - vma.start
        try:
            with ExitStack() as stack:
                source = stack.enter_context((path or Path()).open("rb"))
                size = os.fstat(source.fileno()).st_size
                if offset + length > -(-size // PAGE) * PAGE:
                    return None  # pages beyond the file's end, which must not become readable
                base = self._begin()
                source.seek(offset)
                self._out.write(source.read(length))
        except OSError:
            return None
        for run in vma.runs:
            self._out.seek(base + run.address - vma.start)
            self._copy(pages, run.offset, run.pages * PAGE)
        return self._from_memory(vma.message, vma.start, vma.end, base)

    def _begin(self) -> int:
        """The next whole page of the file."""
        end = self._out.seek(0, os.SEEK_END)
        return self._out.seek(-(-end // PAGE) * PAGE)

    def _copy(self, pages: BinaryIO, offset: int, length: int) -> None:
        pages.seek(offset)
        while length:
            piece = pages.read(min(length, _COPY))
            if not piece:
                raise InvalidImage(f"{self._pages_path.name} is cut short")
            self._out.write(piece)
            length -= len(piece)

    def _from_memory(self, message: Message, start: int, end: int, offset: int) -> Message:
        self.mapped += end - start
        status = message.get(_VMA_STATUS) & ~_STATUS_ANON_PRIVATE | _STATUS_FILE_PRIVATE
        return message.with_values(
            {
                _VMA_START: start,
                _VMA_END: end,
                _VMA_PGOFF: offset,
                _VMA_SHMID: self._files.memory_id,
                _VMA_FLAGS: message.get(_VMA_FLAGS) & ~_MAP_ANONYMOUS,
                _VMA_STATUS: status,
                _VMA_FDFLAGS: os.O_RDONLY,
            }
        )

    def _keep(self, runs: list[_Run], pages: BinaryIO) -> None:
        """Write the image anew with the pages that CRIU is to copy."""
        new_path = self._pages_path.with_suffix(".new")
        entries = [self._head]
        with new_path.open("xb") as out:
            mapped, self._out = self._out, out
            try:
                for run in runs:
                    self._copy(pages, run.offset, run.pages * PAGE)
                    values: dict[int, int | bytes | None] = {
                        _MAP_ADDRESS: run.address,
                        _MAP_COMPAT_PAGES: 0,
                        _MAP_FLAGS: run.flags,
                        _MAP_PAGES: run.pages,
                    }
                    entries.append(Message().with_values(values))
            finally:
                self._out = mapped
        self.copied = sum(run.pages for run in runs) * PAGE
        new_path.replace(self._pages_path)
        images.write(self._map_path, self._map_magic, entries)


def _spans(runs: list[_Run]) -> Iterator[list[_Run]]:
    """Runs with small gaps between them belong together."""
    span: list[_Run] = []
    for run in runs:
        if span and run.address - span[-1].end > _GAP_PAGES * PAGE:
            yield span
            span = []
        span.append(run)
    if span:
        yield span
