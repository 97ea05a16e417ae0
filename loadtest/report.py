"""What a load test leaves: a table, a page and figures for machines in docs/benchmarks/, and a plot."""

import json
import math
import os
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.installing import from_pip
from loadtest.processes import REPOSITORY, NotReady, run

BENCHMARKS = REPOSITORY / "docs/benchmarks"
_BAR = 24
_VECTOR_EXTENSIONS: Mapping[str, str] = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}
_MATPLOTLIB = "matplotlib==3.11.2"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, and what it is to be: at least ``target``, or at most."""

    what: str
    reached: float
    unit: str
    target: float
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.reached >= self.target if self.at_least else self.reached <= self.target

    def row(self) -> list[str]:
        """A row of the table of goals."""
        unit = f" {self.unit}" if self.unit else ""
        bound = "at least" if self.at_least else "at most"
        reached = f"{figure(self.reached)}{unit}{f' ({self.note})' if self.note else ''}"
        return [self.what, reached, f"{bound} {figure(self.target)}{unit}", "yes" if self.met else "NO"]

    def summary(self) -> dict[str, Any]:
        """For the JSON."""
        return {
            "what": self.what,
            "reached": self.reached,
            "unit": self.unit,
            "wanted": self.target,
            "at_least": self.at_least,
            "met": self.met,
        }


def figure(value: float) -> str:
    """With as many digits as say something."""
    if value != value:  # not a number
        return "–"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Markdown; the first ``left`` columns are text, the others figures."""
    marks = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [head, marks, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(cells) for cells in lines)


def goals_table(goals: Sequence[Goal]) -> str:
    """What was reached, and what is wanted."""
    return table(["what", "reached", "wanted", "met"], [goal.row() for goal in goals])


def machine() -> str:
    """The machine, in a line."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    extensions = vector_extensions(facts.get("flags", "").split(), limit)
    processor = facts.get("model name", platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({processor}, {extensions}), {memory:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def vector_extensions(flags: Collection[str], limit: str | None) -> str:
    """The ``flags`` of a processor that decide how fast it computes in which data type, in words.

    ``limit``: oneDNN is kept from using more than this.
    """
    names = [name for flag, name in _VECTOR_EXTENSIONS.items() if flag in flags]
    return (", ".join(names) or "no AVX2") + (f", oneDNN limited to {limit}" if limit else "")


class Progress:
    """A bar on standard error, or a line for each step if that is not a terminal."""

    def __init__(self, steps: int) -> None:
        self._steps = max(1, steps)
        self._done = 0

    def step(self, what: str) -> None:
        """What is being done now; the step before it is over."""
        filled = _BAR * self._done // self._steps
        share = f"{100 * self._done // self._steps:3d} %"
        bar = f"[{'#' * filled}{'.' * (_BAR - filled)}] {share}  {what}"
        if sys.stderr.isatty():
            print(f"\r\033[K{bar}", end="", file=sys.stderr, flush=True)
        else:
            print(bar, file=sys.stderr, flush=True)
        self._done = min(self._steps, self._done + 1)

    def over(self) -> None:
        """Take the bar away."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Panel:
    """A group of bars or of lines: one value, or one for each of ``x``, by name."""

    title: str
    values: dict[str, list[float]]
    x: list[float] | None = None
    x_label: str = ""
    logarithmic: bool = False

    def summary(self) -> dict[str, Any]:
        """For the JSON."""
        return {
            "title": self.title,
            "values": self.values,
            "x": self.x,
            "x_label": self.x_label,
            "logarithmic": self.logarithmic,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A load test's outcome; ``name`` is that of the command and of its files."""

    name: str
    title: str
    about: str
    sections: Sequence[str]
    data: dict[str, Any]
    panels: Sequence[Panel] = ()
    goals: Sequence[Goal] = ()

    def text(self) -> str:
        """The page."""
        command = " ".join(["python -m loadtest", *sys.argv[1:]])
        picture = [f"![{self.title}]({self.name}.png)"] if self.panels else []
        goals = [goals_table(self.goals)] if self.goals else []
        parts = [f"# {self.title}", f"    {command}", f"{machine()}.", self.about.strip()]
        return "\n\n".join([*parts, *goals, *self.sections, *picture]) + "\n"

    def write(self, folder: Path) -> None:
        """The page, the figures as JSON, and the plot."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text(self.text())
        data = {
            "machine": machine(),
            "goals": [goal.summary() for goal in self.goals],
            "panels": [panel.summary() for panel in self.panels],
            **self.data,
        }
        figures = folder / f"{self.name}.json"
        figures.write_text(json.dumps(_finite(data), indent=1) + "\n")
        if self.panels:
            _draw(figures)


def _finite(data: Any) -> Any:
    """What is not a number is null, as JSON has it."""
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _draw(figures: Path) -> None:
    """Draws the panels, with matplotlib in an environment of its own; the page is whole without."""
    try:
        python = from_pip("plot", _MATPLOTLIB) / "python"
        run([str(python), str(REPOSITORY / "loadtest/plot.py"), str(figures)])
    except NotReady as error:
        print(f"no plot: {error}", file=sys.stderr)
