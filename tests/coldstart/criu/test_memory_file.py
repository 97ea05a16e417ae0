"""Every page is found again where a piece says that it is, also if other processes hold the same page."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstart.criu.memory_file import HUGE_PAGE, PAGE, MemoryFile, Piece

START = 0x10000000


def page(number: int) -> bytes:
    return number.to_bytes(4, "little") * (PAGE // 4)


def added(
    file: MemoryFile, numbers: Sequence[int], start: int = START, *, anonymous: bool = True
) -> list[Piece]:
    return file.add(start, start + len(numbers) * PAGE, map(page, numbers), anonymous=anonymous)


def content(pieces: list[Piece], data: bytes) -> bytes:
    result = b""
    for piece in pieces:
        length = piece.end - piece.start
        result += bytes(length) if piece.offset is None else data[piece.offset : piece.offset + length]
    return result


runs = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 400)), max_size=8)
processes = st.lists(st.tuples(st.integers(0, 300), runs, st.booleans()), max_size=4)


@settings(deadline=None)
@given(processes)
def test_what_is_mapped_is_what_was_there(memory: list[tuple[int, list[tuple[int, int]], bool]]) -> None:
    # Runs of pages, ascending or all zeros: what resembles what real processes share.
    expected = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "memory"
        with MemoryFile(path) as file:
            for shift, parts, anonymous in memory:
                numbers = [n * 1000 + i if n else 0 for n, count in parts for i in range(count)]
                start = START + shift * PAGE
                pieces = added(file, numbers, start, anonymous=anonymous)
                expected.append((pieces, b"".join(map(page, numbers)), start, anonymous))
                file.next_process()
        data = path.read_bytes()
    assert len(data) % PAGE == 0
    for pieces, target, start, anonymous in expected:
        assert content(pieces, data.ljust(len(data) + PAGE, b"\0")) == target
        ends = [start, *(piece.end for piece in pieces)]
        assert [piece.start for piece in pieces] == ends[:-1]  # nothing is missing between them
        assert anonymous or all(piece.offset is not None for piece in pieces)


def test_a_page_that_a_fork_left_alone_is_in_the_file_once(tmp_path: Path) -> None:
    numbers = list(range(1, 301))
    changed = [*numbers[:100], 9999, *numbers[101:]]
    with MemoryFile(tmp_path / "memory") as file:
        (parent,) = added(file, numbers)
        file.next_process()
        child = added(file, changed)
    assert (tmp_path / "memory").stat().st_size == 301 * PAGE
    assert [piece.offset for piece in child] == [parent.offset, 300 * PAGE, 101 * PAGE]


def test_a_tensor_that_is_there_twice_is_in_the_file_once(tmp_path: Path) -> None:
    numbers = list(range(1, 2001))
    with MemoryFile(tmp_path / "memory") as file:
        added(file, numbers)
        again = added(file, numbers, START + 10_000 * PAGE)
    used = (tmp_path / "memory").stat().st_blocks * 512
    assert used < 2300 * PAGE  # all but what comes before a remembered page
    assert again[-1].end == START + 12_000 * PAGE


def test_zeros_take_no_room(tmp_path: Path) -> None:
    with MemoryFile(tmp_path / "memory") as file:
        first, nothing, last = added(file, [1, *([0] * 100), 2])
        assert (first.offset, nothing.offset, last.offset) == (0, None, PAGE)
        file.next_process()
        (library,) = added(file, [0] * 1000, anonymous=False)  # must be mapped: a file's page would show
        assert library.offset is not None
    assert (tmp_path / "memory").stat().st_size == 1002 * PAGE
    assert (tmp_path / "memory").stat().st_blocks * 512 <= 16 * PAGE


@pytest.mark.parametrize("shift", [0, 1, 511, 512, 700])
def test_large_memory_is_laid_out_for_huge_pages(tmp_path: Path, shift: int) -> None:
    """Its blocks of 2 MiB are blocks of the file, also behind small memory and behind a run of zeros."""
    numbers = [*range(1, 1501), *([0] * 100), *range(2001, 3501)]
    with MemoryFile(tmp_path / "memory") as file:
        added(file, [7] * 3, 0x1000000)
        pieces = added(file, numbers, START + shift * PAGE)
        added(file, [8] * 3, 0x2000000)
    placed = [piece for piece in pieces if piece.offset is not None]
    assert len(placed) == 2
    assert all(((piece.offset or 0) - piece.start) % HUGE_PAGE == 0 for piece in placed)
    used = (tmp_path / "memory").stat().st_blocks * 512
    assert used <= (3000 + 64) * PAGE  # what lies between are holes


def test_single_zeros_do_not_split_a_huge_page(tmp_path: Path) -> None:
    numbers = [0 if number % 100 == 0 else number for number in range(1, 2049)]
    with MemoryFile(tmp_path / "memory") as file:
        (piece,) = added(file, numbers)
    assert piece == Piece(START, START + 2048 * PAGE, 0)
    assert (tmp_path / "memory").stat().st_blocks * 512 >= 2048 * PAGE


def test_a_file_that_is_there_already_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        MemoryFile(tmp_path / "memory")
    assert (tmp_path / "memory").read_bytes() == b"mine"
