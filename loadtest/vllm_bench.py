"""vLLM's own serving benchmark, also where the distribution is not called vllm, and over a Unix socket.

    python -m loadtest.vllm_bench [--uds PATH] ARGUMENTS OF vllm bench serve

Only the connector is exchanged for the socket; what is asked, measured and computed is vLLM's own.
"""

import sys
from pathlib import Path
from typing import Any

import aiohttp
from vllm.benchmarks.serve import add_cli_args
from vllm.benchmarks.serve import main as serve
from vllm.utils.argparse_utils import FlexibleArgumentParser


def main() -> None:
    """The command."""
    parser = FlexibleArgumentParser(description=__doc__)
    parser.add_argument("--uds", type=Path, help="the engine's socket, in place of an address")
    add_cli_args(parser)
    arguments = parser.parse_args(sys.argv[1:])
    if arguments.uds is not None:
        aiohttp.TCPConnector = _connector(str(arguments.uds))  # type: ignore[misc]
    serve(arguments)


def _connector(path: str) -> Any:
    def connector(*, limit: int = 100, **_: Any) -> aiohttp.UnixConnector:
        return aiohttp.UnixConnector(path, limit=limit)

    return connector


if __name__ == "__main__":
    main()
