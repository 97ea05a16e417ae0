"""What the host and an engine's own processes agree on: exit codes, error codes, paths, the build of vLLM."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

#: The exit status of an engine whose canary is not fit, and of one that could not be asked.
UNFIT = 71
UNPROVEN = 72
#: Where an engine in a sandbox sees its own folder and, when it was restored, its snapshot.
BOX = Path("/run/torpor/box")
SNAPSHOT = Path("/run/torpor/snapshot")
#: The list of pages for each process of a restored engine (`coldstart.snapshots.working_set`).
WRITTEN = SNAPSHOT / "written"
UNFIT_ADAPTER = "adapter_unfit"
"""The ``code`` of an engine's answer to a request whose adapter's canary differs."""


def on_cpu() -> bool:
    """The CPU build of vLLM installs itself under another name."""
    try:
        distribution("vllm")
    except PackageNotFoundError:
        return True
    return False
