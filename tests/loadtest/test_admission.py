"""The benchmark of admission runs, and says so where a figure is missed."""

from pathlib import Path

import pytest

from loadtest import admission


def test_a_small_run_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "docs" / "admission.md"
    sizes = ["--keys", "40", "--projects", "4", "--requests", "400", "--samples", "200"]
    admission.main([*sizes, "--write", str(file)])
    printed = capsys.readouterr().out
    written = file.read_text()
    assert written.startswith("# Letting requests in\n\n    python -m loadtest admission --keys 40 ")
    assert printed in written
    for row in ("authenticate", "admit", "turn", "output", "settle", "headers", "**all of it**", "refused"):
        assert f"| {row} |" in printed


def test_a_figure_that_is_missed_is_told() -> None:
    result = admission.Result.of(2)
    for _ in range(3):
        result.take([0, 0, 0, 0, 0, 0, 100_000])
    result.memory_mb, result.entries = [10.0, 11.0], [1, 1]
    said = admission.table(result)
    assert "| CPU of a request, median | 100.0 us | at most 50 us | NO |" in said
    assert "| memory that the last nine tenths added | 1.0 MB | at most 8 MB | yes |" in said
