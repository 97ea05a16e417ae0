"""What the host and an engine's own processes agree on: exit codes, error codes, paths, the build of vLLM."""

from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

UNFIT = 71
"""The exit status of an engine whose canary is not fit, and of one that could not be asked."""
UNPROVEN = 72
ENGINE_DIR = Path("/run/torpor/box")
"""Where an engine in a sandbox sees its own folder and, when it was restored, its snapshot."""
SNAPSHOT = Path("/run/torpor/snapshot")
WRITTEN = ENGINE_DIR / "written"
"""The list of pages for each process of a restored engine (`coldstart.snapshots.working_set`)."""
SEQUENCES_HEADER = "x-torpor-sequences"
"""How many sequences of an HTTP call the engine computes at a time; without it all of them."""
UNFIT_ADAPTER = "adapter_unfit"
"""The ``code`` of an engine's answer to a request whose adapter's canary differs."""


@cache
def on_cpu() -> bool:
    """The CPU build of vLLM installs itself under another name."""
    try:
        distribution("vllm")
    except PackageNotFoundError:
        return True
    return False
