"""``python -m loadtest set-up REVISION...``: how long `make up` takes on a fresh clone, revision by revision.

Each revision is cloned into a temporary directory, set up with `make up DETACH=1`, and removed again. The
package index's answers and pip's cache are what they are on this machine, so the first clone is not counted:
name a revision twice, or compare the later ones. No other process may use port 8080.
"""

import argparse
import re
import subprocess
import tempfile
import time
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[1]
_PHASES = re.compile(
    r"^(?P<phase>[\w .-]+): (?:installed|compiled|ready after|\d+ MB, made and verified)\b.* (?P<s>\d+) s$"
)


def set_up(revision: str) -> tuple[float, dict[str, int]]:
    """The seconds that the whole takes, and those of each phase that `make up` prints."""
    with tempfile.TemporaryDirectory(prefix="torpor-set-up-") as folder:
        clone = Path(folder) / "torpor"
        subprocess.run(["git", "clone", "-q", _REPOSITORY, clone], check=True)
        subprocess.run(["git", "checkout", "-q", revision], cwd=clone, check=True)
        began = time.monotonic()
        output = subprocess.run(
            ["make", "up", "DETACH=1"], cwd=clone, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        took_s = time.monotonic() - began
        subprocess.run(["make", "down"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
    lines = (_PHASES.match(line) for line in output.splitlines())
    return took_s, {line["phase"]: int(line["s"]) for line in lines if line}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("revisions", nargs="+", metavar="REVISION")
    options = parser.parse_args()
    print("| revision | seconds | phases |\n|---|---:|---|")
    for revision in options.revisions:
        took_s, phases = set_up(revision)
        durations = ", ".join(f"{phase} {seconds}" for phase, seconds in phases.items())
        print(f"| {revision} | {took_s:.0f} | {durations} |", flush=True)


if __name__ == "__main__":
    main()
