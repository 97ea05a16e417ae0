"""Digests of whole files, made in the background by a process of low priority at a bounded rate.

A process of its own: a thread of low priority that holds the interpreter's lock while others have the
processor would stop the gateway. It reads what the page cache holds, which is what restored engines map.

The process reads ``{"files": [paths], "bytes_per_s": number}`` from its standard input and writes one JSON
line for each file: ``[path, digest (BLAKE3, hex) or null, what is wrong or null]``.
"""

import asyncio
import ctypes
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

RATE = 256_000_000
"""Bytes in a second: a gigabyte is read in four seconds, beside engines that need the memory's bandwidth."""
_PIECE = 1 << 20
_NICE = 19
_IOPRIO_SET, _IOPRIO_WHO_PROCESS, _IOPRIO_IDLE = 251, 1, 3 << 13
# System call 251 of x86-64; elsewhere the disk's priority follows the process's own.
_ROOT = Path(__file__).resolve().parents[2]


class DigestFailed(Exception):
    """The process ended before it had read everything. That says nothing about the files."""


async def digests(files: Iterable[Path], bytes_per_s: float = RATE) -> dict[Path, str | OSError]:
    """The digest of each file, or why it cannot be read. Raises `DigestFailed`."""
    request = {"files": [str(path) for path in files], "bytes_per_s": bytes_per_s}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(_ROOT), "PATH": os.defpath},
    )
    try:
        output, _ = await process.communicate(json.dumps(request).encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise DigestFailed(f"the process that reads the snapshot ended with {process.returncode}")
    return {
        Path(path): _result(digest, error) for path, digest, error in map(json.loads, output.splitlines())
    }


def _result(digest: str | None, error: str | None) -> str | OSError:
    return OSError(error) if digest is None else digest


def _yield_to_everybody() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    if os.uname().machine == "x86_64":
        ctypes.CDLL(None).syscall(_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)


def _digest(path: str, bytes_per_s: float, parent: int) -> str:
    digest, buffer = blake3(), bytearray(_PIECE)
    began, total = time.monotonic(), 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            total += count
            if os.getppid() != parent:
                sys.exit(1)  # no caller waits for it
            time.sleep(max(0.0, began + total / bytes_per_s - time.monotonic()))
    return digest.hexdigest()


def main() -> None:
    """In the process."""
    parent = os.getppid()
    _yield_to_everybody()
    request = json.load(sys.stdin)
    for path in request["files"]:
        try:
            line = [path, _digest(path, request["bytes_per_s"], parent), None]
        except OSError as error:
            line = [path, None, error.strerror]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
