"""Draws the panels of a load test's figures beside them: ``NAME.json`` to ``NAME.png``.

    python loadtest/plot.py docs/benchmarks/overhead.json

In an environment of its own, with matplotlib: it needs nothing else (`loadtest.report`).
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

_OURS = "#c2410c"
_OTHERS = "#64748b"


def draw(figures: Path) -> Path:
    """The picture's file."""
    panels = json.loads(figures.read_text())["panels"]
    matplotlib.use("agg")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    drawing, axes = pyplot.subplots(
        rows, columns, figsize=(6 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )
    for index, panel_axes in enumerate(axes.flat):
        if index < len(panels):
            _panel(panel_axes, panels[index])
        else:
            panel_axes.axis("off")
    picture = figures.with_suffix(".png")
    drawing.savefig(picture, dpi=110)
    return picture


def _panel(axes: Axes, panel: dict[str, Any]) -> None:
    axes.set_title(panel["title"], fontsize=10)
    axes.tick_params(labelsize=8)
    if panel["x"] is None:
        names = list(panel["values"])
        heights = [panel["values"][name][0] or 0 for name in names]
        colours = [_OURS if name == "torpor" else _OTHERS for name in names]
        bars = axes.barh(names, heights, color=colours)
        axes.bar_label(
            bars, [f" {height:,.0f}" if height >= 100 else f" {height:.3g}" for height in heights], fontsize=8
        )
        axes.invert_yaxis()
        axes.margins(x=0.15)
        if panel["logarithmic"]:
            axes.set_xscale("log")
        return
    for name, values in panel["values"].items():
        axes.plot(panel["x"], values, label=name, color=_OURS if name == "torpor" else None, linewidth=1.4)
    axes.set_xlabel(panel["x_label"], fontsize=8)
    axes.set_yscale("log" if panel["logarithmic"] else "linear")
    if not panel["logarithmic"]:
        axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
