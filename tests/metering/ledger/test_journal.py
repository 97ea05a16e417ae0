"""The journal: what was acknowledged is read back, whatever a crash, a full disk or a bad sector left."""

import logging
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.ledger.journal import Journal, Row
from tenants.errors import StorageUnavailable


def _journal(folder: Path, *, size: int = 4_096, segments: int = 4) -> Journal:
    journal = Journal(folder, max_bytes=size * segments, segment_bytes=size)
    assert journal.claim()
    return journal


def _written(folder: Path, rows: list[list[Row]]) -> None:
    journal = _journal(folder)
    journal.restart(0)
    for group in rows:
        journal.append(group)
    journal.close(empty=False)


def _read(folder: Path) -> list[list[Row]]:
    journal = _journal(folder)
    try:
        return [list(group.rows) for group in journal.replay()]
    finally:
        journal.close(empty=False)


def _groups(count: int) -> list[list[Row]]:
    return [
        [(f"att_{number}_{item}", None, 1.5, True, 2**40) for item in range(3)] for number in range(count)
    ]


def test_what_was_appended_is_read_back_over_segments(tmp_path: Path) -> None:
    groups = _groups(100)
    _written(tmp_path, groups)
    assert len(list(tmp_path.glob("*.journal"))) > 2
    assert _read(tmp_path) == groups
    assert _read(tmp_path) == groups


@settings(max_examples=60, deadline=None)
@given(lost=st.integers(min_value=1, max_value=120))
def test_torn_record_is_left_out_and_no_other(tmp_path_factory: pytest.TempPathFactory, lost: int) -> None:
    folder = tmp_path_factory.mktemp("torn")
    groups = _groups(5)
    _written(folder, groups)
    file = min(folder.glob("*.journal"))
    data = file.read_bytes()
    used = len(data.rstrip(b"\0"))
    file.write_bytes(data[: used - lost] + b"\0" * (len(data) - used + lost))
    read = _read(folder)
    assert read == groups[: len(read)]
    assert len(read) >= 3
    shutil.rmtree(folder)


def test_damage_costs_one_record_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    groups = _groups(10)
    _written(tmp_path, groups)
    file = min(tmp_path.glob("*.journal"))
    data = bytearray(file.read_bytes())
    data[data.index(b"att_4_1")] ^= 0xFF
    file.write_bytes(data)
    with caplog.at_level(logging.ERROR, "torpor.ledger"):
        assert _read(tmp_path) == groups[:4] + groups[5:]
    assert any("is damaged" in record.getMessage() for record in caplog.records)


def test_journal_that_is_full_takes_nothing_until_the_database_has_some(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.restart(0)
    numbers: list[int] = []
    with pytest.raises(StorageUnavailable):
        for group in _groups(10_000):
            numbers.append(journal.append(group))
    assert journal.max_bytes - 4_096 < journal.used_bytes <= journal.max_bytes
    assert sum(file.stat().st_size for file in tmp_path.glob("*.journal")) == journal.max_bytes
    journal.applied(numbers[len(numbers) // 2])
    journal.append(_groups(1)[0])
    journal.applied(numbers[-1] + 1)
    assert journal.used_bytes < 4_096
    for group in _groups(200):
        journal.applied(journal.append(group))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.journal")) == journal.max_bytes
    journal.close(empty=True)
    assert not list(tmp_path.glob("*.journal"))


def test_segment_that_is_used_again_is_read_in_order(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.restart(0)
    first, second = [("a", 1)], [("a", 2)]
    for _ in range(40):
        journal.applied(journal.append(first * 5))
    journal.append(second)
    journal.close(empty=False)
    assert _read(tmp_path)[-1] == second


def test_another_process_cannot_have_it_and_another_journals_records_are_not_taken(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    _written(mine, _groups(3))
    _written(theirs, _groups(1))
    shutil.copy(min(mine.glob("*.journal")), theirs / "00000009.journal")
    assert _read(theirs) == _groups(1)
    held = _journal(mine)
    assert not Journal(mine).claim()
    owner = held.owner
    held.close(empty=False)
    again = _journal(mine)
    assert again.owner == owner
    again.close(empty=False)


def test_group_larger_than_a_segment_is_refused_and_nothing_is_broken(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.restart(7)
    with pytest.raises(StorageUnavailable):
        journal.append([("x" * 5_000,)])
    assert journal.append([("y",)]) == 8
    journal.close(empty=True)
