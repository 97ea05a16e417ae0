"""Waits in an engine's sandbox for the order to try everything that `loadtest.isolation_attempts` has.

This file is put into the sandbox and imported there, by an extension of vLLM's worker or by a stand-in; it
needs nothing but the standard library. A thread waits for the file ``attempts.json`` in a folder, forks a
child, which has the engine's user, filter and root folder, and lets it try everything. What came out is
written to ``results.json`` there: pairs of a name and an outcome, which begins with ``refused`` unless the
attempt succeeded.
"""

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from loadtest.isolation_attempts import ATTEMPTS, EngineSite

REQUEST, RESULTS = "attempts.json", "results.json"
_POLL_S = 0.05


def run_all(folder: Path, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Try everything, in the order above: the name and the outcome of each attempt."""
    site = EngineSite(folder, facts)
    results = []
    for attempt in ATTEMPTS:
        try:
            outcome = f"SUCCEEDED: {attempt(site)}"
        except OSError as error:
            killed = "killed" in str(error)
            outcome = f"refused: {error.strerror if killed else errno.errorcode.get(error.errno or 0, error)}"
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            outcome = f"BROKEN: {error!r}"  # the attempt itself is at fault, which must be seen
        results.append((attempt.__name__.replace("_", " "), outcome))
    return results


def watch(folder: str) -> None:
    """Wait in a thread for a request in the folder, again and again, and answer it there."""
    threading.Thread(target=_watch, args=(Path(folder),), daemon=True).start()


def _watch(folder: Path) -> None:
    while True:
        time.sleep(_POLL_S)
        try:
            facts = json.loads((folder / REQUEST).read_bytes())
        except (OSError, ValueError):
            continue
        (folder / REQUEST).unlink()
        pid = os.fork()
        if pid == 0:
            try:
                results = run_all(folder, facts)
                (folder / f".{RESULTS}").write_text(json.dumps(results))
                (folder / f".{RESULTS}").rename(folder / RESULTS)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
