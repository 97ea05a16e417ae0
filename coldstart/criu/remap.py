"""Rewriting CRIU's images: a restore then maps memory that stock CRIU would copy.

Stock CRIU fills a restored process's memory by reading its pages from the image: at 1.5 us for each page that
the kernel must first find and zero, a gigabyte takes most of a second. Here the pages move into one file,
``memory``, laid out in the order of their addresses, and each piece of memory becomes a private mapping of
that file: the kernel reads a page when it is touched, from the page cache, which all replicas of a snapshot
share until they write to it. What two processes hold alike is in the file once
(`coldstart.criu.memory_file`).

Two kinds of memory are rewritten. Private anonymous memory, in runs of present pages (small gaps are filled
with zeros, which is what they read as). And private file mappings with changed pages (the relocated data of
libraries): the file's bytes with the changed pages over them. Stacks that grow, executable and shared memory,
and the kernel's own pages stay with CRIU.

The danger: on a private file mapping ``MADV_DONTNEED`` brings back the file's bytes and not zeros. Who asks
for zeros that way must not have been remapped: tests/coldstart/criu/test_remap.py holds the allocators to
that.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

from coldstart.criu import images
from coldstart.criu.images import InvalidImage, ProtobufMessage
from coldstart.criu.memory_file import PAGE, MemoryFile, Piece

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
    message: ProtobufMessage
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


def remap(
    folder: Path, memory: Path, seen_as: Path, outside: Callable[[Path], Path | None] = lambda path: path
) -> Remapped:
    """Rewrite the images in ``folder`` in place, the memory going to the new file ``memory``.

    ``seen_as``: the path under which a restored process will find that file. ``outside``: the file here that
    the dumped processes saw at a path, or None. Raises `InvalidImage`, OSError.
    """
    files = _Files(folder, outside)
    mapped = copied = mappings = 0
    with MemoryFile(memory) as out:
        for path in sorted(folder.glob("mm-*.img"), key=lambda path: int(path.stem.partition("-")[2])):
            process = _Process(folder, int(path.stem.partition("-")[2]), files, out)
            process.rewrite()
            out.next_process()
            files.next_process()
            mapped += process.mapped
            copied += process.copied
            mappings += process.mappings
    files.write(memory, seen_as)
    return Remapped(mapped, copied, mappings)


class _Files:
    """CRIU's table of open files, with an entry of its own for each process that maps a file.

    Where parent and child map the same entry at the same place, CRIU makes the parent's mapping early and
    lets the child inherit it, which costs more than two mappings, and does not compare offsets.
    """

    def __init__(self, folder: Path, outside: Callable[[Path], Path | None]) -> None:
        self._path = folder / "files.img"
        self._outside = outside
        self._magic, self._entries = images.read(self._path)
        self._regular: dict[int, ProtobufMessage] = {}
        for entry in self._entries:
            blob = entry.blob(_FILE_REG)
            if blob is not None:
                self._regular[entry.get(_FILE_ID)] = ProtobufMessage.parse(blob)
        if not self._regular:
            raise InvalidImage("files.img names no regular file")
        self._next_id = max(entry.get(_FILE_ID) for entry in self._entries) + 1
        self._process_ids: dict[int, int] = {}
        self._taken: set[int] = set()
        self._memory_ids = [self._new_id()]

    def next_process(self) -> None:
        """The mappings that follow are another process's."""
        self._taken |= self._process_ids.keys()
        self._process_ids = {}
        self._memory_ids.append(self._new_id())

    @property
    def memory_id(self) -> int:
        """The memory file, for the mappings of the present process."""
        return self._memory_ids[-1]

    def own(self, file_id: int) -> int:
        """The file, for the mappings of the present process."""
        if file_id not in self._process_ids:
            regular = self._regular.get(file_id)
            if regular is None or file_id not in self._taken:
                self._process_ids[file_id] = file_id
            else:
                self._process_ids[file_id] = self._new_id()
                self._add(self._process_ids[file_id], regular)
        return self._process_ids[file_id]

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _add(self, file_id: int, regular: ProtobufMessage) -> None:
        blob = regular.with_values({_REG_ID: file_id}).encode()
        entry: dict[int, int | bytes | None] = {_FILE_TYPE: _REGULAR_FILE, _FILE_ID: file_id, _FILE_REG: blob}
        self._entries.append(ProtobufMessage().with_values(entry))

    def path(self, file_id: int) -> Path | None:
        """Where the file is here; None if it is not known."""
        regular = self._regular.get(file_id)
        name = None if regular is None else regular.blob(_REG_NAME)
        return None if name is None else self._outside(Path(os.fsdecode(name)))

    def write(self, memory: Path, seen_as: Path) -> None:
        """Rewrite the table, with the memory file under each of its ids."""
        memory.chmod(0o400)
        status = memory.stat()
        like = next(iter(self._regular.values()))
        regular = like.with_values(
            {
                _REG_FLAGS: os.O_RDONLY,
                _REG_POSITION: 0,
                _REG_NAME: os.fsencode(seen_as),
                _REG_SIZE: status.st_size,
                _REG_MODE: status.st_mode,
                _REG_BUILD_ID: None,
            }
        )
        for file_id in self._memory_ids:
            self._add(file_id, regular)
        images.write(self._path, self._magic, self._entries)


class _Process:
    """The memory of one process.

    It has many attributes because two image files, each with its own head and entries, are rewritten
    together.
    """

    def __init__(self, folder: Path, pid: int, files: _Files, out: MemoryFile) -> None:
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
        self._vmas = [_Vma(ProtobufMessage.parse(blob)) for blob in self._mm.blobs(_MM_VMAS)]
        self._vmas.sort(key=lambda vma: vma.start)
        self._assign(entries[1:])
        self.mapped = self.copied = self.mappings = 0

    def _assign(self, entries: list[ProtobufMessage]) -> None:
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
        vmas: list[ProtobufMessage] = []
        kept: list[_Run] = []
        with ExitStack() as stack:
            pages = stack.enter_context(self._pages_path.open("rb"))
            for vma in self._vmas:
                status = vma.message.get(_VMA_STATUS)
                plain = status & ~_STATUS_HEAP
                if not vma.runs or self._left_alone(vma):
                    vmas.append(self._unchanged(vma))
                    kept += vma.runs
                elif plain == _STATUS_REGULAR | _STATUS_ANON_PRIVATE:
                    vmas += self._remap_anonymous(vma, pages)
                elif plain == _STATUS_REGULAR | _STATUS_FILE_PRIVATE and (new := self._overlay(vma, pages)):
                    vmas += new
                else:
                    vmas.append(self._unchanged(vma))
                    kept += vma.runs
            self._keep(kept, pages)
        self.mappings = len(vmas)
        mm = self._mm.with_repeated(_MM_VMAS, [vma.encode() for vma in vmas])
        images.write(self._mm_path, self._mm_magic, [mm])

    @staticmethod
    def _left_alone(vma: _Vma) -> bool:
        message = vma.message
        return bool(message.get(_VMA_PROT) & _PROT_EXEC or message.get(_VMA_FLAGS) & _MAP_GROWSDOWN)

    def _unchanged(self, vma: _Vma) -> ProtobufMessage:
        if not vma.message.get(_VMA_STATUS) & _STATUS_FILE_PRIVATE:
            return vma.message
        return vma.message.with_values({_VMA_SHMID: self._files.own(vma.message.get(_VMA_SHMID))})

    def _remap_anonymous(self, vma: _Vma, pages: BinaryIO) -> Iterator[ProtobufMessage]:
        """The pieces of the mapping: those with pages come from the file, the others stay as they are."""
        at = vma.start
        for runs in _spans(vma.runs):
            start, end = runs[0].address, runs[-1].end
            for piece in self._out.add(start, end, self._pages_of(runs, pages), anonymous=True):
                if piece.offset is None:
                    continue
                if at < piece.start:
                    yield vma.message.with_values({_VMA_START: at, _VMA_END: piece.start})
                yield self._from_memory(vma.message, piece)
                at = piece.end
        if at < vma.end:
            yield vma.message.with_values({_VMA_START: at, _VMA_END: vma.end})

    def _overlay(self, vma: _Vma, pages: BinaryIO) -> list[ProtobufMessage]:
        """The mapped file's bytes with the changed pages over them; empty if the file has none of them."""
        path = self._files.path(vma.message.get(_VMA_SHMID))
        offset, length = vma.message.get(_VMA_PGOFF), vma.end - vma.start
        if path is None:
            return []
        try:
            with path.open("rb") as source:
                size = os.fstat(source.fileno()).st_size
                if offset + length > -(-size // PAGE) * PAGE:
                    return []  # pages beyond the file's end, which must not become readable
                content = bytearray(os.pread(source.fileno(), length, offset).ljust(length, b"\0"))
        except OSError:
            return []
        for run in vma.runs:
            first = run.address - vma.start
            content[first : first + run.pages * PAGE] = b"".join(self._pages_of([run], pages))
        whole = (bytes(content[at : at + PAGE]) for at in range(0, length, PAGE))
        return [
            self._from_memory(vma.message, piece)
            for piece in self._out.add(vma.start, vma.end, whole, anonymous=False)
        ]

    def _pages_of(self, runs: list[_Run], pages: BinaryIO) -> Iterator[bytes]:
        """What the runs hold, page by page, with zeros between them."""
        at = runs[0].address
        for run in runs:
            yield from repeat(bytes(PAGE), (run.address - at) // PAGE)
            pages.seek(run.offset)
            for _ in range(run.pages):
                page = pages.read(PAGE)
                if len(page) != PAGE:
                    raise InvalidImage(f"{self._pages_path.name} is cut short")
                yield page
            at = run.end

    def _from_memory(self, message: ProtobufMessage, piece: Piece) -> ProtobufMessage:
        self.mapped += piece.end - piece.start
        status = message.get(_VMA_STATUS) & ~_STATUS_ANON_PRIVATE | _STATUS_FILE_PRIVATE
        return message.with_values(
            {
                _VMA_START: piece.start,
                _VMA_END: piece.end,
                _VMA_PGOFF: piece.offset or 0,
                _VMA_SHMID: self._files.memory_id,
                _VMA_FLAGS: message.get(_VMA_FLAGS) & ~_MAP_ANONYMOUS,
                _VMA_STATUS: status,
                _VMA_FDFLAGS: os.O_RDONLY,
            }
        )

    def _keep(self, runs: list[_Run], pages: BinaryIO) -> None:
        """Rewrite the image with the pages that CRIU is to copy."""
        new_path = self._pages_path.with_suffix(".new")
        entries = [self._head]
        with open(new_path, "xb", opener=_private) as out:
            for run in runs:
                out.writelines(self._pages_of([run], pages))
                values: dict[int, int | bytes | None] = {
                    _MAP_ADDRESS: run.address,
                    _MAP_COMPAT_PAGES: 0,
                    _MAP_FLAGS: run.flags,
                    _MAP_PAGES: run.pages,
                }
                entries.append(ProtobufMessage().with_values(values))
        self.copied = sum(run.pages for run in runs) * PAGE
        new_path.replace(self._pages_path)
        images.write(self._map_path, self._map_magic, entries)


def _spans(runs: list[_Run]) -> Iterator[list[_Run]]:
    """Run with small gaps between them belong together."""
    span: list[_Run] = []
    for run in runs:
        if span and run.address - span[-1].end > _GAP_PAGES * PAGE:
            yield span
            span = []
        span.append(run)
    if span:
        yield span


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
