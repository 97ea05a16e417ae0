"""Tables, goals, pages and the command line of the load tests."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from loadtest.__main__ import TESTS, arguments_of
from loadtest.alternating import alternate, per_second, steps
from loadtest.measure import Load, Measured, Series
from loadtest.peers import PEERS
from loadtest.processes import Child, NotReady, usage_of
from loadtest.report import (
    Goal,
    Panel,
    Progress,
    Report,
    figure,
    goals_table,
    machine,
    table,
    vector_extensions,
)
from loadtest.standin import Ending, State
from loadtest.targets import DIRECT, Engine, Target
from loadtest.traffic import Entry, Sent, wrong


def test_a_table_is_aligned_markdown() -> None:
    assert table(["name", "n"], [["a", "1"], ["longer", "22"]]) == (
        "| name   |    n |\n| ---    | ---: |\n| a      |    1 |\n| longer |   22 |"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3, "3"), (1234.5, "1,234"), (12.34, "12.3"), (0.128, "0.13"), (float("nan"), "–")],
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text


def test_goals() -> None:
    met = Goal("a", 6001, "/s", 6000, at_least=True)
    missed = Goal("b", float("nan"), "us", 160)
    assert (met.met, missed.met) == (True, False)
    said = goals_table([met, missed])
    assert "6,001 /s | at least 6,000 /s |  yes |" in said
    assert "at most 160 us |   NO |" in said


def test_a_series_tells_its_range() -> None:
    assert Series((3.0, 1.0, 2.0)).told() == "2 (1–3)"
    assert Series((2.5,)).told(1) == "2.5"
    assert Series((float("nan"),)).told() == "–"


def test_a_report_writes_page_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_matplotlib(*_: str) -> Path:
        raise NotReady("no such package")

    monkeypatch.setattr("loadtest.report.from_pip", no_matplotlib)
    monkeypatch.setattr(sys, "argv", ["loadtest", "overhead", "--rounds", "1"])
    report = Report(
        name="overhead",
        title="What it costs",
        about="About.",
        sections=["| a |"],
        data={"values": [1.0, float("nan")]},
        panels=[Panel("p", {"torpor": [1.0]})],
        goals=[Goal("g", 1, "ms", 2)],
    )
    report.write(tmp_path)
    page = (tmp_path / "overhead.md").read_text()
    assert page.startswith("# What it costs\n\n    python -m loadtest overhead --rounds 1\n\n")
    assert "| g " in page
    assert "![What it costs](overhead.png)" in page
    data = json.loads((tmp_path / "overhead.json").read_text())
    assert data["values"] == [1.0, None]
    assert data["goals"][0]["met"] is True
    assert "no plot: no such package" in capsys.readouterr().err


def test_the_progress_tells_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(2)
    progress.step("one")
    progress.step("two")
    answer = capsys.readouterr().err
    assert "  0 %  one" in answer
    assert " 50 %  two" in answer


@pytest.mark.parametrize("name", TESTS)
def test_every_test_has_its_options(name: str) -> None:
    arguments = arguments_of([name, "--write"])
    assert arguments.test == name
    assert arguments.write.name == "benchmarks"


async def test_a_gateway_that_does_not_start_is_reported(engine: Engine) -> None:
    def start(_engine: Engine, _folder: Path) -> "Child":
        raise NotReady("it is on no registry")

    load = Load(name="plain", connections=2, tokens=2)
    targets = (DIRECT, Target("absent", "", "", start))  # type: ignore[arg-type]
    progress = Progress(steps(targets, [load], 2))
    results = await alternate(
        engine, targets, [load], rounds=2, seconds=0.05, warm_up_s=0.05, progress=progress
    )
    assert results.failed == {"absent": "it is on no registry"}
    assert len(results.measured["direct", "plain"]) == 2
    assert results.median("direct", load, per_second) > 0
    assert results.told("absent", load, per_second) == "–"
    measured: Measured = results.measured["direct", "plain"][0]
    assert measured.summary()["errors"] == {}


async def test_a_peer_without_its_source_says_where_it_belongs(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NotReady, match="put a checkout"), PEERS["production-stack"].start(engine, tmp_path):
        pass


def test_a_process_is_ended_with_all_below_it(tmp_path: Path) -> None:
    script = "trap '' TERM; (trap '' TERM; sleep 60) & echo $!; wait"
    with Child("sh", ["sh", "-c", script], log=tmp_path / "log") as child:
        while not (tmp_path / "log").read_text().strip():
            assert child.process.poll() is None
        below = int((tmp_path / "log").read_text())
        assert usage_of(child.pid).processes >= 2
        child.end(0.2)
    assert usage_of(below).processes == 0


def test_a_process_that_ends_early_says_why(tmp_path: Path) -> None:
    script = ["sh", "-c", "echo no such file; exit 3"]
    answer = pytest.raises(NotReady, match=r"(?s)it ended with 3:.*no such file")
    with Child("it", script, log=tmp_path / "log") as child, answer:
        child.wait_for("http://127.0.0.1:9/health")


def _sent() -> dict[str, Sent]:
    return {
        "whole": Sent("stream", 7, received=7, metered=True),
        "cut": Sent("disconnect", 7, received=3, metered=True),
        "bad": Sent("bad JSON", 7),
    }


def _entries(whole: int = 7, cut: int = 4) -> dict[str, list[Entry]]:
    return {
        "whole": [Entry("completed", 37, whole, estimated=False)],
        "cut": [Entry("aborted", 37, cut, estimated=False)],
    }


def test_the_ledger_is_held_against_what_clients_received() -> None:
    state = State(tags={"cut": Ending(1.0, 5, whole=False)})
    assert wrong(_sent(), _entries(), state) == Counter()
    assert wrong(_sent(), _entries(whole=6), state) == {"other tokens than received": 1}
    assert wrong(_sent(), _entries(cut=2), state) == {"tokens of a broken-off stream": 1}
    assert wrong(_sent(), _entries(cut=6), state) == {"tokens of a broken-off stream": 1}
    assert wrong(_sent(), {"whole": _entries()["whole"] * 2}, state) == {"counted twice": 1, "missing": 1}
    refused = {**_entries(), "bad": _entries()["cut"]}
    assert wrong(_sent(), refused, state) == {"entries of refused requests": 1}
    unsettled = {**_entries(), "cut": [Entry(None, 37, 4, estimated=False)]}
    assert wrong(_sent(), unsettled, state) == {"not settled": 1}


def test_the_machine_is_named_with_its_vector_extensions() -> None:
    assert vector_extensions(["fpu", "avx2"], None) == "AVX2"
    assert vector_extensions(["avx512_bf16", "avx512f", "avx2"], None) == "AVX2, AVX-512, AVX-512 BF16"
    assert vector_extensions([], None) == "no AVX2"
    assert vector_extensions(["avx2", "avx512f"], "AVX2") == "AVX2, AVX-512, oneDNN limited to AVX2"
    assert "cores (" in machine()
