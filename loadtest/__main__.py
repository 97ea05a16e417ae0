"""Load tests and benchmarks: ``python -m loadtest NAME``; ``--help`` lists the names.

Those with a report (overhead, streams, saturation, soak, compare) print its tables; ``--write`` puts the
page, the figures as JSON and the plot into docs/benchmarks. The others have options of their own: ``NAME
--help`` prints them.
"""

import argparse
import asyncio
import resource
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import uvloop

from loadtest import compare, overhead, saturation, soak, streams
from loadtest.collector import collect_rarely
from loadtest.processes import NotReady, cancelled_by_signals
from loadtest.report import BENCHMARKS

TESTS: Mapping[str, ModuleType] = {
    "overhead": overhead,
    "streams": streams,
    "saturation": saturation,
    "soak": soak,
    "compare": compare,
}

OTHERS: Mapping[str, str] = {
    "adapters": "adapters: loads, shares of the time, answers of many at once",
    "admission": "what limits, budgets and the queue cost a request",
    "coldstart": "wakes from every tier, for any model",
    "crash-metering": "entries of the ledger through kills of the gateway",
    "fairness": "what a flood of one project does to another",
    "generator": "the load generator alone, against any server",
    "isolation": "what an engine can do to its host",
    "ledger": "how many entries a second become durable",
    "loop-turns": "how long one request keeps the event loop",
    "noisy-neighbour": "what one tenant's requests do to another's",
    "policy-sim": "keep-alive policies on simulated arrivals",
    "random-model": "makes a model with random weights",
    "set-up": "how long `make up` takes on fresh clones",
    "wake-pairs": "wakes of two versions in turn",
    "usage-query": "usage reports over millions of entries",
}
"""Commands of modules that have the same name, with ``_`` for ``-``."""


def arguments_of(given: list[str]) -> argparse.Namespace:
    """The parsed command line of a test with a report."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=__doc__,
        epilog="others:\n" + "\n".join(f"  {name:<16}{text}" for name, text in OTHERS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="test", required=True)
    for name, module in TESTS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        module.options(command)
        command.add_argument(
            "--write",
            nargs="?",
            type=Path,
            const=BENCHMARKS,
            metavar="FOLDER",
            help=f"where the page, the figures and the plot go: {BENCHMARKS.name} in docs without a folder",
        )
    return parser.parse_args(given)


def main() -> int:
    """Exit code 1 if a goal is missed, 2 if the test could not be made."""
    if len(sys.argv) > 1 and sys.argv[1] in OTHERS:
        name = sys.argv.pop(1)
        sys.argv[0] = f"python -m loadtest {name}"
        result: int | None = import_module(f"loadtest.{name.replace('-', '_')}").main()
        return result or 0
    arguments = arguments_of(sys.argv[1:])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    collect_rarely()
    try:
        report = uvloop.run(cancelled_by_signals(TESTS[arguments.test].run(arguments)))
    except NotReady as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    except asyncio.CancelledError:
        return 130
    print(report.text())
    if arguments.write is not None:
        report.write(arguments.write)
    return 0 if all(goal.met for goal in report.goals) else 1


if __name__ == "__main__":
    sys.exit(main())
