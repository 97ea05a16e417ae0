"""Starts one engine: ``python -m engines.vllm_process.launcher`` with vLLM's own arguments."""

import sys


def main() -> None:
    """Serve until SIGTERM."""
    # Here and not above: the engine core and its workers import the main module again, and need no server.
    from engines.vllm_process.server import serve

    serve(sys.argv[1:])


if __name__ == "__main__":
    main()
