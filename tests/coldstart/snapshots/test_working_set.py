"""What a wake touches is seen, and read ahead of the next one in the order in which it is needed."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coldstart.sandbox.root_layout import RootLayout
from coldstart.snapshots.readahead import read_ahead, write_list
from coldstart.snapshots.working_set import WorkingSet, observe

PAGE = mmap.PAGESIZE
MB = 1 << 20
# Reads page 300 of a private mapping and writes to page 500; of anonymous memory it writes to page 7.
TOUCHES = """
import ctypes, mmap, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
anonymous = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
start = lambda memory: ctypes.addressof(ctypes.c_char.from_buffer(memory))
seen = mapped[300 * mmap.PAGESIZE]
mapped[500 * mmap.PAGESIZE] = 1
anonymous[7 * mmap.PAGESIZE] = 1
print(start(mapped), start(anonymous), flush=True)
sys.stdin.read()
"""


def in_folder(folder: Path) -> Callable[[Path], Path | None]:
    """As an engine sees its snapshot at /seen, and all other files where they are."""
    return RootLayout({Path("/seen"): folder, Path("/"): Path("/")}).outside


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of 8 MB, on the disk."""
    path = tmp_path / "file"
    with path.open("wb") as out:
        out.write(os.urandom(8 * MB))
        out.flush()
        os.fsync(out.fileno())
    return path


@pytest.fixture
def touching(file: Path) -> Iterator[tuple[int, int, int]]:
    """The pid of a process, and where it has mapped the file and anonymous memory."""
    forget(file)  # else the kernel maps the neighbours of a page that is read as well
    with subprocess.Popen(
        [sys.executable, "-c", TOUCHES, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        mapped, anonymous = map(int, process.stdout.readline().split())
        yield process.pid, mapped, anonymous
        process.communicate()


def forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def is_cached(path: Path, offset: int) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def test_what_a_process_read_and_wrote_is_seen(file: Path, touching: tuple[int, int, int]) -> None:
    pid, mapped, anonymous = touching
    touched = observe([pid])
    written = touched.written[pid]
    for address in (mapped + 500 * PAGE, anonymous + 7 * PAGE):
        assert any(start <= address < start + length for start, length in written)
    for untouched in (mapped + 300 * PAGE, mapped + 600 * PAGE, anonymous + 40 * PAGE):
        assert not any(start <= untouched < start + length for start, length in written)
    read = touched.read[str(file)]
    for page in (300, 500):
        assert any(offset <= page * PAGE < offset + length for offset, length in read)
    assert not any(offset <= 1500 * PAGE < offset + length for offset, length in read)


def test_what_is_listed_is_read_ahead_and_nothing_where_it_is_there(tmp_path: Path, file: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    inside = snapshot / "memory"
    inside.write_bytes(os.urandom(3 * MB))
    touched = WorkingSet(
        written={7: [(0x1000, PAGE)]}, read={str(file): [(4 * MB, 2 * MB)], "/seen/memory": [(0, MB)]}
    )
    touched.write(snapshot, snapshot, WorkingSet())
    assert (snapshot / "written" / "7").read_bytes() == (0x1000).to_bytes(8, "little") + PAGE.to_bytes(
        8, "little"
    )
    for path in (file, inside):
        os.sync()
        forget(path)
    assert read_ahead(snapshot, in_folder(snapshot), ()) == 3 * MB
    assert is_cached(file, 5 * MB)
    assert is_cached(inside, MB // 2)
    assert read_ahead(snapshot, in_folder(snapshot), ()) == 0


def test_the_order_is_kept_and_little_is_asked_for_at_a_time(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is needed first is asked for first, and the disk's queue stays short."""
    first = tmp_path / "criu"
    first.write_bytes(b"x" * 100)
    write_list(tmp_path, [(str(file), [(0, PAGE), (2 * MB, 6 * MB)])])
    request: list[tuple[int, int]] = []
    ahead = most = 0
    pread = os.pread

    def advise(_: int, offset: int, length: int, __: int) -> None:
        nonlocal ahead, most
        request.append((offset, length))
        ahead += length
        most = max(most, ahead)

    def read(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal ahead
        ahead -= next(size for start, size in request if start + size - 1 == offset)
        return pread(descriptor, length, offset)

    forget(file)
    monkeypatch.setattr("coldstart.snapshots.readahead.os.posix_fadvise", advise)
    monkeypatch.setattr("coldstart.snapshots.readahead.os.pread", read)
    assert read_ahead(tmp_path, in_folder(tmp_path), [first]) == 100 + PAGE + 6 * MB
    assert request == [(0, 100), (0, PAGE), *((2 * MB + n * MB, MB) for n in range(6))]
    assert most <= 5 * MB + PAGE
    assert ahead == 0


@pytest.mark.parametrize("listed", [None, b"", b"{"])
def test_without_a_list_nothing_is_read(tmp_path: Path, listed: bytes | None) -> None:
    if listed is not None:
        (tmp_path / "prefetch.json").write_bytes(listed)
    assert read_ahead(tmp_path, in_folder(tmp_path), ()) == 0


def test_files_that_are_gone_are_passed_over(tmp_path: Path, file: Path) -> None:
    write_list(tmp_path, [("/nowhere/at/all", [(0, PAGE)]), (str(file), [(0, MB)])])
    forget(file)
    assert read_ahead(tmp_path, in_folder(tmp_path), [tmp_path / "nothing"]) == MB
