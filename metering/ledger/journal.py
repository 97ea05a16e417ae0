"""The local journal: keeps ledger writes durable, before a request is answered, until the database has them.

A journal is a folder with a lock file, the id of its owner and segment files of a fixed size, which are
allocated before they are needed: a disk that fills up does not stop what is under way. A record is
one group of rows::

    magic   4 bytes  b"TLJ1"
    crc     4 bytes  CRC-32 of all that follows
    owner   8 bytes  of the journal that wrote it; what is left of a segment's earlier use is of no account
    number  8 bytes  of the group, rising
    length  4 bytes  of the payload
    payload          MessagePack: an array of rows, each an array in the order of `COLUMNS`

all integers big-endian. A group is durable when `append` returns. A record that was torn by a crash has a
wrong checksum and was never acknowledged; behind one that was damaged later, reading goes on at the next
record, and says so.
"""

import errno
import fcntl
import logging
import os
import secrets
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tenants.errors import StorageUnavailable

_logger = logging.getLogger("torpor.ledger")

SEGMENT_BYTES = 4 * 1024 * 1024
MAX_BYTES = 64 * 1024 * 1024
"""Writes beyond this size are refused."""
_AHEAD = 1
_MAGIC = b"TLJ1"
_HEAD = struct.Struct(">4sI8sQI")
_CHECKED = 8
_OWNER_BYTES = 8
_SUFFIX = ".journal"

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that were made durable together. Numbers rise, not necessarily by one."""

    number: int
    rows: Sequence[Row]


@dataclass(slots=True)
class _Segment:
    """A file, how much of it is used, and the number of its last group."""

    path: Path
    used: int = 0
    last: int = 0


class Journal:
    """One process's journal in a folder of its own. Not safe for threads: one appends, after one has read.

    Every method but `close` raises `StorageUnavailable` where the folder cannot be used.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int = MAX_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._max_segments = max(2, max_bytes // segment_bytes)
        self._lock: int | None = None
        self._owner = b""
        self._number = 0
        self._segments = 0
        self._current: _Segment | None = None
        self._descriptor: int | None = None
        self._full: list[_Segment] = []
        self._spare: list[Path] = []

    @property
    def owner(self) -> str:
        """The id of the journal, the same at each start of its process."""
        return f"own_{self._owner.hex()}"

    @property
    def used_bytes(self) -> int:
        """What of its size is taken, whole segments where they wait for the database."""
        current = 0 if self._current is None else self._current.used
        return len(self._full) * self._segment_bytes + current

    @property
    def max_bytes(self) -> int:
        """Its size."""
        return self._max_segments * self._segment_bytes

    def claim(self) -> bool:
        """Lock the journal until this process ends; False if another process holds it."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageUnavailable("the ledger's journal cannot be opened") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        try:
            self._owner = os.pread(lock, _OWNER_BYTES, 0)
            if len(self._owner) < _OWNER_BYTES:
                self._owner = secrets.token_bytes(_OWNER_BYTES)
                os.pwrite(lock, self._owner, 0)
                os.fsync(lock)
                self._sync_folder()
        except OSError as error:
            os.close(lock)
            raise StorageUnavailable("the ledger's journal cannot be opened") from error
        self._lock = lock
        return True

    def replay(self) -> Iterator[Group]:
        """What an earlier process left, in order. To be followed by `restart` once the database has it."""
        groups: list[Group] = []
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                groups += self._read(path.read_bytes(), path.name)
            except OSError as error:
                raise StorageUnavailable("the ledger's journal cannot be read") from error
        yield from sorted(groups, key=lambda group: group.number)

    def restart(self, after: int) -> None:
        """Empty the journal, whose groups go on with the number that comes next, and make it writable."""
        self._number = after
        try:
            for path in self._folder.glob(f"*{_SUFFIX}"):
                path.unlink()
            self._sync_folder()
            while len(self._spare) < 1 + _AHEAD:
                self._allocate()
        except OSError as error:
            raise StorageUnavailable("the ledger's journal cannot be written") from error

    def append(self, rows: Sequence[Row]) -> int:
        """Make the rows durable as one group, and return its number.

        Raises `StorageUnavailable` where the journal or the disk is full, or the disk fails, and what
        msgspec raises for a row that cannot be encoded; then nothing of it is durable.
        """
        payload = msgspec.msgpack.encode(rows)
        number = self._number + 1
        checked = self._owner + struct.pack(">QI", number, len(payload)) + payload
        record = _MAGIC + struct.pack(">I", zlib.crc32(checked)) + checked
        if len(record) > self._segment_bytes:
            raise StorageUnavailable("a group is larger than a segment of the journal")
        try:
            self._write(record, number)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageUnavailable("the ledger's journal or its disk is full") from error
            raise StorageUnavailable("the ledger's journal cannot be written") from error
        self._number = number
        return number

    def applied(self, number: int) -> None:
        """The database has everything up to this group; segments with nothing else are used again."""
        while self._full and self._full[0].last <= number:
            self._spare.append(self._full.pop(0).path)
        current = self._current
        if current is not None and current.used and current.last <= number and not self._full:
            current.used = 0

    def close(self, *, empty: bool) -> None:
        """Give the journal back; ``empty``: the database has everything, and no file needs to stay."""
        self._close_segment()
        if empty:
            with suppress(OSError):
                for path in self._folder.glob(f"*{_SUFFIX}"):
                    path.unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, record: bytes, number: int) -> None:
        current = self._current
        if current is None or current.used + len(record) > self._segment_bytes:
            current = self._next_segment()
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = os.open(current.path, os.O_RDWR | os.O_DSYNC | os.O_CLOEXEC)
        written = 0
        while written < len(record):
            written += os.pwrite(descriptor, record[written:], current.used + written)
        current.used += len(record)
        current.last = number

    def _next_segment(self) -> _Segment:
        if not self._spare:
            if len(self._full) + 1 >= self._max_segments:
                raise OSError(errno.ENOSPC, "the journal has its full size")
            self._allocate()
        if self._current is not None:
            self._full.append(self._current)
        self._close_segment()
        self._current = _Segment(self._spare.pop(0))
        if not self._spare and len(self._full) + 1 < self._max_segments:
            with suppress(OSError):  # tried again when it is needed
                self._allocate()
        return self._current

    def _allocate(self) -> None:
        self._segments += 1
        path = self._folder / f"{self._segments:08}{_SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self._segment_bytes)
            os.fsync(descriptor)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        self._sync_folder()
        self._spare.append(path)

    def _close_segment(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, data: bytes, name: str) -> list[Group]:
        groups: list[Group] = []
        at, damaged = 0, False
        while (at := data.find(_MAGIC, at)) >= 0:
            group, length = self._record(data, at)
            if group is None:
                damaged, at = True, at + 1
                continue
            if damaged and groups and groups[-1].number < group.number:
                _logger.error("the ledger's journal %s is damaged before group %d", name, group.number)
            damaged = False
            groups.append(group)
            at += length
        return groups

    def _record(self, data: bytes, at: int) -> tuple[Group | None, int]:
        if at + _HEAD.size > len(data):
            return None, 0
        _, checksum, owner, number, length = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if owner != self._owner or end > len(data):
            return None, 0
        if zlib.crc32(data[at + _CHECKED : end]) != checksum:
            return None, 0
        rows = msgspec.msgpack.decode(data[at + _HEAD.size : end], type=list[tuple[Any, ...]])
        return Group(number, rows), end - at
