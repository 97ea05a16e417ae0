"""Giving memory back to the system, from inside an engine's processes."""

import ctypes
import gc
import mmap
import os
import struct

from engines.wire import WRITTEN

_MADV_DONTNEED, _MADV_POPULATE_WRITE = 4, 23
_libc = ctypes.CDLL(None, use_errno=True)


def drop(address: int, length: int) -> None:
    """Forget the content of whole pages of private anonymous memory: they read as zeros. Raises OSError."""
    result = _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_DONTNEED)
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"madvise of {length} bytes")


def whole_pages(address: int, length: int) -> tuple[int, int]:
    """The address and length of the whole pages inside a piece of memory."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + length) // mmap.PAGESIZE * mmap.PAGESIZE
    return first, max(0, last - first)


def trim() -> None:
    """Collect garbage, and give the allocator's free pages back (glibc's; others keep theirs)."""
    gc.collect()
    release = getattr(_libc, "malloc_trim", None)
    if release is not None:
        release(0)


def populate() -> int:
    """Make the pages private that a wake is known to write to. Returns their bytes.

    Done in one go it costs a third of the page faults that come one by one, each of which interrupts all
    threads of the process. The snapshot has the list (`coldstart.snapshots.working_set`), by the process's
    id.
    """
    try:
        data = (WRITTEN / str(os.getpid())).read_bytes()
    except OSError:
        return 0
    total = 0
    for address, length in struct.iter_unpack("<QQ", data):
        if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_POPULATE_WRITE) == 0:
            total += length
    return total
