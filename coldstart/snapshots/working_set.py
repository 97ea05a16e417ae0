"""What a wake touches, seen once in the page tables of a tree that was restored and has answered a request.

After Ustiugov et al., "Benchmarking, Analysis, and Optimization of Serverless Function Snapshots" (REAP,
ASPLOS 2021): a restored process touches nearly the same small part of its memory each time. Two lists come of
it: the pages that it *wrote* to, by process, which the next wake makes private in one go; and the parts of
*files* that it read, which the next wake from a cold page cache reads ahead in large pieces.
"""

import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from coldstart.snapshots.readahead import Part, Range, write_list

_PAGE = 4096
_ENTRY = 8
_PRESENT, _FILE_OR_SHARED = 1 << 63, 1 << 61
# Kernel documentation, admin-guide/mm/pagemap: bit 63 page present, bit 61 page is of a file or shared.
_CHUNK = 1 << 15
# Written pages closer to each other than this become one range: fewer calls, some pages too many.
_WRITTEN_GAP = 2 * _PAGE
_READ_GAP = 64 * _PAGE
WRITTEN = "written"
"""Folder in the tree's run folder."""


@dataclass(slots=True)
class WorkingSet:
    """``written``: (address, length) by the pid within the sandbox; ``read``: (offset, length) by file."""

    written: dict[int, list[Range]] = field(default_factory=dict)
    read: dict[str, list[Range]] = field(default_factory=dict)

    def write(self, folder: Path, box: Path, earlier: "WorkingSet") -> None:
        """Put the lists into a snapshot; what was touched ``earlier`` is to be read first.

        The list of reads goes into its folder, that of writes into ``box``, what the tree has in its run
        folder: the restored tree itself needs it.
        """
        (box / WRITTEN).mkdir(mode=0o700, exist_ok=True)
        for pid, ranges in self.written.items():
            data = b"".join(struct.pack("<QQ", *pages) for pages in ranges)
            (box / WRITTEN / str(pid)).write_bytes(data)
        write_list(folder, [*earlier.in_order(), *self.in_order()])

    def in_order(self) -> list[Part]:
        """The small files first: a process needs its libraries before it needs its heap."""
        return sorted(self.read.items(), key=lambda part: sum(length for _, length in part[1]))


def observe(pids: Iterable[int]) -> WorkingSet:
    """Read the page tables of processes (as this process counts them). Takes some 0.3 s. Raises OSError."""
    touched = WorkingSet()
    read: dict[str, list[Range]] = {}
    for pid in pids:
        written: list[Range] = []
        pages = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
        try:
            for mapping in _mappings(pid):
                for start, length, private in _present(pages, mapping):
                    if private and mapping.writable:
                        written.append((start, length))
                    if mapping.path is not None:  # a page that is private now was read before it was copied
                        offset = start - mapping.start + mapping.offset
                        read.setdefault(mapping.path, []).append((offset, length))
        finally:
            os.close(pages)
        touched.written[_inner_pid(pid)] = _merged(written, _WRITTEN_GAP)
    touched.read = {path: _merged(sorted(ranges), _READ_GAP) for path, ranges in read.items()}
    return touched


@dataclass(frozen=True, slots=True)
class _Mapping:
    start: int
    end: int
    writable: bool
    offset: int
    path: str | None


def _mappings(pid: int) -> Iterator[_Mapping]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        start, _, end = words[0].partition("-")
        path = words[5] if len(words) > 5 and words[5].startswith("/") else None
        special = len(words) > 5 and words[5].startswith(("[v", "[stack"))
        if not special and words[1][3] == "p":
            yield _Mapping(int(start, 16), int(end, 16), words[1][1] == "w", int(words[2], 16), path)


def _present(pages: int, mapping: _Mapping) -> Iterator[tuple[int, int, bool]]:
    """Run of pages that are there: address, length, and whether the process has its own copy."""
    run_start, run_kind = mapping.start, 0
    address = mapping.start
    while address < mapping.end:
        count = min(_CHUNK, (mapping.end - address) // _PAGE)
        entries = array("Q", os.pread(pages, count * _ENTRY, address // _PAGE * _ENTRY))
        if not any(entries):
            if run_kind:
                yield run_start, address - run_start, run_kind == 2
                run_kind = 0
            address += count * _PAGE
            continue
        for entry in entries:
            kind = 0 if not entry & _PRESENT else 1 if entry & _FILE_OR_SHARED else 2
            if kind != run_kind:
                if run_kind:
                    yield run_start, address - run_start, run_kind == 2
                run_start, run_kind = address, kind
            address += _PAGE
    if run_kind:
        yield run_start, mapping.end - run_start, run_kind == 2


def _merged(ranges: list[Range], gap: int) -> list[Range]:
    merged: list[Range] = []
    for start, length in ranges:
        if merged and start <= sum(merged[-1]) + gap:
            first = merged[-1][0]
            merged[-1] = (first, max(sum(merged[-1]), start + length) - first)
        else:
            merged.append((start, length))
    return merged


def _inner_pid(pid: int) -> int:
    """The process's id in the innermost pid namespace."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid
