"""Load tests: ``python -m loadtest overhead|streams|saturation|soak|compare``.

Each prints its tables; ``--write`` puts the page, the figures as JSON and the plot into docs/benchmarks.
"""

import argparse
import asyncio
import resource
import sys
from collections.abc import Mapping
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


def arguments_of(given: list[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    """Exit code 1 where a goal is missed, 2 where the test could not be made."""
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
