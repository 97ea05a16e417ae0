"""The file that a snapshot's memory is in: each page once, however many processes hold it.

Processes that were forked from each other hold much of the same at the same addresses, and a model may hold
a tensor twice. A page that is in the file already is mapped from there, where enough of them follow each
other: each piece is one more mapping for a restore to make. Zeros are left out where the memory is anonymous
(it reads as zeros), and are holes in the file elsewhere.

Large pieces are laid out for huge pages: at an offset that leaves the same remainder modulo 2 MiB as the
address, and written in whole blocks of 2 MiB. The page cache then holds each block as one folio, if the file
system can do it (ext4, XFS). The kernel then maps a block in one page fault instead of 32, and the processor
needs one entry of its TLB for it. What lies between such pieces are holes.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from blake3 import blake3

PAGE = 4096
_ZERO = bytes(PAGE)
_DIGEST = 16
# At least so many pages must be shared, or be zeros, to be worth a mapping of their own.
_SHARED_PAGES = 32
_ZERO_PAGES = 64
# One page in so many is remembered by its content.
_ANCHOR_PAGES = 256
HUGE_PAGE = 2 << 20
_BUFFER = HUGE_PAGE
# Memory from this length on is laid out for huge pages: it holds at least one whole block.
_LARGE = 2 * HUGE_PAGE


@dataclass(slots=True)
class Piece:
    """Memory from ``start`` to ``end`` that is in the file from ``offset`` on; nowhere, where it is zeros."""

    start: int
    end: int
    offset: int | None

    def follows(self, other: "Piece") -> bool:
        """Whether it goes on where the other ends, in memory and in the file."""
        if other.end != self.start or (self.offset is None) != (other.offset is None):
            return False
        return self.offset is None or self.offset - (other.offset or 0) == self.start - other.start


class MemoryFile:
    """Writes the file; ``add`` is called with the memory of one process after the other."""

    def __init__(self, path: Path) -> None:
        """Create the file. Raises FileExistsError, OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._buffer = bytearray()
        self._written = 0  # what follows is in the buffer
        self._anchors: dict[bytes, int] = {}
        self._earlier: list[list[Piece]] = []
        self._current: list[Piece] = []

    def __enter__(self) -> "MemoryFile":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
                os.ftruncate(self._fd, self._written)
        finally:
            os.close(self._fd)

    def next_process(self) -> None:
        """What is added from now on is another process's memory."""
        self._current.sort(key=lambda piece: piece.start)
        self._earlier.append(self._current)
        self._current = []

    def add(self, start: int, end: int, pages: Iterable[bytes], *, anonymous: bool) -> list[Piece]:
        """Take in the pages from address ``start`` to ``end``; returns where each of them is now."""
        run = _Run(self, start, anonymous=anonymous, large=end - start >= _LARGE)
        for page in pages:
            run.add(page)
        pieces = run.end()
        self._current += [piece for piece in pieces if piece.offset is not None]
        return pieces

    def align(self, address: int) -> None:
        """Leave a hole up to an offset at which a huge page can hold the next page."""
        self._flush()
        self._written += (address - self._written) % HUGE_PAGE

    def append(self, page: bytes, *, whole: bool) -> int:
        """Write a page at the end; returns its offset. ``whole``: zeros too, which are a hole otherwise."""
        offset = self._written + len(self._buffer)
        if page == _ZERO and not whole:
            self._flush()
            self._written += PAGE
            return offset
        if offset // PAGE % _ANCHOR_PAGES == 0:
            self._anchors.setdefault(_digest(page), offset)
        self._buffer += page
        if (offset + PAGE) % _BUFFER == 0:
            self._flush()
        return offset

    def holds(self, offset: int, page: bytes) -> bool:
        """Whether the file has this page there."""
        return self.read(offset) == page

    def read(self, offset: int) -> bytes:
        """The page at the offset; nothing beyond the end."""
        if offset >= self._written:
            return bytes(self._buffer[offset - self._written : offset - self._written + PAGE])
        page = os.pread(self._fd, PAGE, offset)
        return page if len(page) == PAGE else page.ljust(PAGE, b"\0")

    def find(self, address: int, page: bytes) -> int | None:
        """Where the file has this page: for another process at this address, or as one that is remembered."""
        for pieces in self._earlier:
            index = bisect_right(pieces, address, key=lambda piece: piece.start) - 1
            if index >= 0 and address < pieces[index].end:
                offset = (pieces[index].offset or 0) + address - pieces[index].start
                if self.holds(offset, page):
                    return offset
        offset_of_same = self._anchors.get(_digest(page))
        if offset_of_same is not None and self.holds(offset_of_same, page):
            return offset_of_same
        return None

    def _flush(self) -> None:
        data = memoryview(self._buffer)
        while data:
            count = os.pwrite(self._fd, data, self._written)
            self._written += count
            data = data[count:]
        self._buffer = bytearray()


class _Run:
    """Pages of one process that follow each other, on their way into the file.

    ``_guess`` is a piece that is zeros or in the file already, and not known yet to be long enough.
    """

    def __init__(self, file: MemoryFile, start: int, *, anonymous: bool, large: bool) -> None:
        self._file = file
        self._at = start
        self._anonymous = anonymous
        self._large = large
        self._pieces: list[Piece] = []
        self._guess: Piece | None = None

    def add(self, page: bytes) -> None:
        guess = self._guess
        if guess is None or not self._goes_on(guess, page):
            self._settle()
            guess = self._guess = self._new_guess(page)
        self._at += PAGE
        if guess is None:
            self._own(self._at - PAGE, page)
        else:
            guess.end = self._at

    def end(self) -> list[Piece]:
        self._settle()
        return self._pieces

    def _goes_on(self, guess: Piece, page: bytes) -> bool:
        if guess.offset is None:
            return page == _ZERO
        return self._file.holds(guess.offset + guess.end - guess.start, page)

    def _new_guess(self, page: bytes) -> Piece | None:
        if page == _ZERO:
            return Piece(self._at, self._at, None) if self._anonymous else None
        offset = self._file.find(self._at, page)
        return None if offset is None else Piece(self._at, self._at, offset)

    def _settle(self) -> None:
        """Keep the guess as a piece where it is long enough; else its pages are written like others."""
        guess, self._guess = self._guess, None
        if guess is None:
            return
        least = _ZERO_PAGES if guess.offset is None else _SHARED_PAGES
        if guess.end - guess.start >= least * PAGE:
            self._pieces.append(guess)
            return
        for done in range(0, guess.end - guess.start, PAGE):
            page = _ZERO if guess.offset is None else self._file.read(guess.offset + done)
            self._own(guess.start + done, page)

    def _own(self, address: int, page: bytes) -> None:
        last = self._pieces[-1] if self._pieces else None
        if self._large and (last is None or last.end != address or last.offset is None):
            self._file.align(address)
        piece = Piece(address, address + PAGE, self._file.append(page, whole=self._large))
        if last is not None and piece.follows(last):
            last.end = piece.end
        else:
            self._pieces.append(piece)


def _digest(page: bytes) -> bytes:
    return blake3(page).digest(_DIGEST)
