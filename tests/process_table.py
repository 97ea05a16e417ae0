"""Who is alive, read from /proc."""

import os
from pathlib import Path


def processes_with(mark: str | Path) -> list[int]:
    """The living processes, this one excepted, whose command line, environment or folder holds ``mark``."""
    result = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            answer = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            answer += os.fsencode((entry / "cwd").readlink())
            state = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0]
        except OSError:
            continue
        if os.fsencode(mark) in answer and state != b"Z":
            result.append(int(entry.name))
    return result
