"""Wakes of two versions in turn: ``python -m loadtest wake-pairs --before CHECKOUT [--write PAGE]``.

Two gateways of its own, one of this version and one of another checkout, with the same real engine and model.
Each round wakes both from a snapshot, in alternating order, since the machine's speed drifts. *Ready* is the
time from the host's decision to an answer of the engine's socket, with its phases, as
``GET /v1/torpor/engines`` tells; *TTFT* is taken by the client.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from loadtest.processes import REPOSITORY
from loadtest.report import table
from loadtest.wakes import MODEL, SETTLE_S, WakingGateway

CONFIG = """
[server]
port = {port}

[metrics]
enabled = false

[engines]
criu = "{root}/.criu"

[[models]]
id = "smollm2-135m"
source = "{root}/models/smollm2-135m"
idle_pause_s = 3600
idle_snapshot_s = 7200
"""
_BEFORE, _NOW = "before", "now"
_PHASES = ("sandbox", "restore", "answer", "total", "TTFT")

Figures = dict[str, dict[str, list[float]]]
"""Milliseconds of each wake, by version and phase."""


def measure(gateways: dict[str, WakingGateway], wakes: int) -> Figures:
    """Wake each gateway's engine so often, in turn."""
    figures: Figures = {name: defaultdict(list) for name in gateways}
    order = list(gateways)
    for number in range(wakes + 1):
        for name in order if number % 2 else reversed(order):
            gateway = gateways[name]
            gateway.sleep("snapshot")
            ttft_ms, tier = gateway.ask()
            if tier != "snapshot":
                raise AssertionError(f"{name}: the engine was {tier}")
            time.sleep(SETTLE_S)
            if number:  # the first round warms both up
                phases = {**gateway.engine()["wakes"][-1]["ms"], "TTFT": ttft_ms}
                for phase in _PHASES:
                    figures[name][phase].append(phases[phase])
    return figures


def page(figures: Figures) -> str:
    """The table in Markdown."""
    rows = []
    for phase in _PHASES:
        before, now = figures[_BEFORE][phase], figures[_NOW][phase]
        differences = [second - first for first, second in zip(before, now, strict=True)]
        ratio = statistics.median(now) / statistics.median(before)
        quartiles = " .. ".join(f"{value:+.1f}" for value in statistics.quantiles(differences, n=4))
        rows.append([phase, _text(before), _text(now), f"{ratio:.2f}", quartiles])
    wakes = len(figures[_NOW]["total"])
    head = ["ms", "before", "now", "ratio", "quartiles of the differences"]
    return "\n".join(
        [
            "# Wakes of two versions in turn",
            "",
            f"`python -m loadtest wake-pairs`: {wakes} wakes of {MODEL} from a snapshot in each version, in "
            f"turn; Linux {platform.release()}. Medians, with the lower quartile in parentheses.",
            "",
            table(head, rows),
            "",
        ]
    )


def _text(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({statistics.quantiles(values, n=4)[0]:.1f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m loadtest wake-pairs", description=__doc__)
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT", help="of another version")
    parser.add_argument("--wakes", type=int, default=40, help="of each version")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this file as well")
    options = parser.parse_args()
    with ExitStack() as stack:
        gateways = {}
        for name, source in ((_BEFORE, options.before.resolve()), (_NOW, REPOSITORY)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torpor-wakes-")))
            gateway = WakingGateway(folder, CONFIG, source)
            stack.enter_context(gateway.serving())
            gateway.torpor("snapshot", "create", MODEL)
            gateways[name] = gateway
        text = page(measure(gateways, options.wakes))
    print(text)
    if options.write is not None:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
