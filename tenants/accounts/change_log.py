"""Revocations and changes, shared by all processes that use the same data directory.

The file is a ring of subjects (ids of keys, projects and organizations, or a kind of key) behind a counter.
All of it is mapped into memory. A process that caches something compares the counter, which costs no system
call, and drops what the subjects name if it has moved.
"""

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EVERYTHING = "*"
"""The subject that stands for all of them."""

_MAGIC = b"TORPORC1"
_SLOT_BYTES = 64
_SLOTS = 256
_SIZE = _SLOT_BYTES * (_SLOTS + 1)
_COUNTER = 1
"""The first slot is the head: the magic, then the counter, 8 bytes each."""


class ChangeLog:
    """A counter and the newest 256 subjects; without a path, of this process alone.

    Raises OSError where the file cannot be made. A writer changes it under the file's lock and tells of a
    change after it has been committed.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._file: int | None = None
        if path is None:
            self._map = mmap.mmap(-1, _SIZE)
        else:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Reserved: a full disk cannot fail a later write to the mapping.
                os.posix_fallocate(self._file, 0, _SIZE)
                self._map = mmap.mmap(self._file, _SIZE)
            except OSError:
                os.close(self._file)
                raise
        self._words = memoryview(self._map).cast("Q")
        with self._locked(fcntl.LOCK_EX):
            if self._map[: len(_MAGIC)] != _MAGIC:
                self._map[:_SIZE] = _MAGIC + bytes(_SIZE - len(_MAGIC))

    @property
    def count(self) -> int:
        """How many changes have been told of."""
        return self._words[_COUNTER]

    def publish(self, subject: str) -> None:
        """Announce a committed change to every process."""
        text = subject.encode()
        if len(text) > _SLOT_BYTES:
            text = EVERYTHING.encode()
        with self._locked(fcntl.LOCK_EX):
            start = _start(self._words[_COUNTER])
            self._map[start : start + _SLOT_BYTES] = text.ljust(_SLOT_BYTES, b"\0")
            self._words[_COUNTER] += 1

    def since(self, seen: int) -> tuple[int, frozenset[str]]:
        """The counter now, and the subjects of the changes after the first ``seen``.

        `EVERYTHING` is among them where there were more than the ring holds.
        """
        with self._locked(fcntl.LOCK_SH):
            count = self._words[_COUNTER]
            if not 0 <= count - seen <= _SLOTS:
                return count, frozenset({EVERYTHING})
            slots = (_start(number) for number in range(seen, count))
            texts = [self._map[start : start + _SLOT_BYTES] for start in slots]
        return count, frozenset(text.rstrip(b"\0").decode() for text in texts)

    def close(self) -> None:
        """Give the file back."""
        self._words.release()
        self._map.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @contextmanager
    def _locked(self, operation: int) -> Iterator[None]:
        """How long to wait for the lock. A holder only copies a slot."""
        if self._file is None:
            yield
            return
        fcntl.flock(self._file, operation)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _start(number: int) -> int:
    return _SLOT_BYTES * (1 + number % _SLOTS)
