"""Reading ahead what a wake will need, to keep its waits for the disk short.

A restore and the processes that it makes read from a cold page cache in small pieces, each of which waits for
the one before. What they will read is known (`coldstart.snapshots.working_set`): it is read in that order,
and only a few megabytes at a time, since what they ask for themselves must not stand in a long queue at the
disk.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

Range = tuple[int, int]
Part = tuple[str, list[Range]]
"""A file, and the offsets and lengths in bytes of pieces of it."""

_PIECE, _AHEAD = 1 << 20, 4 << 20
_SAMPLES = 8
PREFETCH = "prefetch.json"
"""File in a snapshot."""


def write_list(folder: Path, parts: Iterable[Part]) -> None:
    """Put the list into a snapshot's folder, in the order in which it is to be read."""
    (folder / PREFETCH).write_text(json.dumps(list(parts)))


def read_ahead(folder: Path, outside: Callable[[Path], Path | None], first: Iterable[Path]) -> int:
    """Bring the files ``first`` and what is listed in a snapshot's folder into the page cache.

    ``outside``: the file here that the observed tree saw at a path, or None. Nothing is read where samples
    are in the page cache already. Returns the bytes that were read. Blocks: call it in a thread.
    """
    try:
        listed: list[Part] = json.loads((folder / PREFETCH).read_bytes())
    except (OSError, ValueError):
        return 0
    whole = [_whole(path) for path in first]
    files = ((outside(Path(path)), ranges) for path, ranges in listed)
    parts = [*whole, *((str(file), ranges) for file, ranges in files if file is not None)]
    largest = max(parts, key=lambda part: sum(length for _, length in part[1]), default=None)
    if largest is None or all(_cached(part) for part in (largest, *whole)):
        return 0
    reader = _Reader()
    try:
        for path, ranges in parts:
            reader.read(path, ranges)
    finally:
        reader.wait()
    return reader.total


def _whole(path: Path) -> Part:
    try:
        return str(path), [(0, path.stat().st_size)]
    except OSError:
        return str(path), []


class _Reader:
    """Asks for piece after piece, a bounded number of bytes ahead of what has come."""

    def __init__(self) -> None:
        self._awaited: deque[tuple[int, int, int]] = deque()  # descriptor, offset of the last byte, bytes
        self._ahead = self.total = 0

    def read(self, path: str, ranges: Iterable[Range]) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            for offset, length in _pieces(ranges):
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
                self._awaited.append((os.dup(descriptor), offset + length - 1, length))
                self._ahead += length
                self.total += length
                self.wait(_AHEAD)
        finally:
            os.close(descriptor)

    def wait(self, left: int = 0) -> None:
        """Until at most so many bytes are still to come."""
        while self._ahead > left:
            descriptor, last, length = self._awaited.popleft()
            self._ahead -= length
            try:
                os.pread(descriptor, 1, last)
            finally:
                os.close(descriptor)


def _pieces(ranges: Iterable[Range]) -> Iterator[Range]:
    for offset, length in ranges:
        for start in range(offset, offset + length, _PIECE):
            yield start, min(_PIECE, offset + length - start)


def _cached(part: Part) -> bool:
    """Whether a few pages all over the ranges can be read without waiting for the disk."""
    path, ranges = part
    buffer = [bytearray(1)]
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True  # there is nothing to read
    try:
        for offset, length in ranges[:: max(1, len(ranges) // _SAMPLES)]:
            if os.preadv(descriptor, buffer, offset + length // 2, os.RWF_NOWAIT) != 1:
                return False
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
