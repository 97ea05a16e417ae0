"""Processes that a load test starts: found ready, measured with all below them, and ended for certain."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

REPOSITORY = Path(__file__).parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_END_S = 20.0
_POLL_S = 0.005

T = TypeVar("T")


class NotReady(Exception):
    """A process ended, or did not answer in time; the text says which, with the end of its log."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and everything below it use."""

    cpu_s: float
    memory_bytes: int
    descriptors: int
    threads: int
    processes: int


class Child:
    """A process that ends when the `with` ends, or when this process does, however that may be."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._begun = time.monotonic()
        setpriv = shutil.which("setpriv")
        dying_with_us = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*dying_with_us, *arguments],
                cwd=cwd,
                env=clean_environment(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """The figure of the process itself."""
        return self.process.pid

    def wait_for(self, url: str, timeout_s: float = 60.0, *, statuses: Sequence[int] = (200,)) -> float:
        """Wait until the URL is answered with one of these statuses; the seconds since its start.

        Raises `NotReady`.
        """
        split = urlsplit(url)
        while time.monotonic() - self._begun < timeout_s:
            if self.process.poll() is not None:
                raise NotReady(f"{self.name} ended with {self.process.returncode}:\n{self.last_lines()}")
            connection = HTTPConnection(split.hostname or "", split.port or 80, timeout=5)
            with closing(connection), suppress(OSError, HTTPException):
                connection.request("GET", split.path)
                if connection.getresponse().status in statuses:
                    return time.monotonic() - self._begun
            time.sleep(_POLL_S)
        raise NotReady(f"{self.name} did not answer at {url} in {timeout_s:g} s:\n{self.last_lines()}")

    async def finished(self, timeout_s: float) -> None:
        """Wait until it has ended well. Raises `NotReady`."""
        try:
            code = await asyncio.to_thread(self.process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            raise NotReady(f"{self.name} did not end in {timeout_s:g} s:\n{self.last_lines()}") from None
        if code:
            raise NotReady(f"{self.name} ended with {code}:\n{self.last_lines()}")

    def last_lines(self, count: int = 12) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def usage(self) -> Usage:
        """What it and everything below it use now."""
        return usage_of(self.pid)

    def end(self, patience_s: float = _END_S) -> None:
        """SIGTERM; SIGKILL to whatever of it is left after that long."""
        below = _begun(_family(self.pid))
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        while left := _still_there(below):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)
        self.process.wait()


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without Torpor's settings and proxies, with the repository's modules."""
    dropped = ("http_proxy", "https_proxy", "all_proxy")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TORPOR_") and name.lower() not in dropped
    }
    return {**kept, "PYTHONPATH": str(REPOSITORY), **more}


def run(
    arguments: Sequence[str],
    *,
    cwd: Path | None = None,
    timeout_s: float = 300.0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end; what it printed. Raises `NotReady` where it fails."""
    try:
        done = subprocess.run(
            arguments,
            cwd=cwd,
            env=clean_environment(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        lines = getattr(error, "stderr", None) or str(error)
        last = "\n".join(str(lines).strip().splitlines()[-4:])
        raise NotReady(f"{' '.join(arguments[:6])}: {last}") from error
    return done.stdout


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *arguments]


def usage_of(root: int, *, below: bool = True) -> Usage:
    """The figures of a process and, by default, of everything below it; zeros if it has ended.

    CPU time holds that of children that have ended and been waited for.
    """
    cpu_s, memory, descriptors, threads, processes = 0.0, 0, 0, 0, 0
    for pid in _family(root) if below else [root]:
        with suppress(OSError):
            fields = _stat(pid)
            if fields[0] == "Z":
                continue
            spent = fields[11:15] if pid == root else fields[11:13]
            cpu_s += sum(map(int, spent)) / _TICKS
            threads += int(fields[17])
            memory += int(fields[21]) * _PAGE
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
            processes += 1
    return Usage(cpu_s, memory, descriptors, threads, processes)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name (proc_pid_stat(5): index 0 is field 3)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _family(root: int) -> list[int]:
    """The process and everything below it."""
    pids, left = [], [root]
    while left:
        pid = left.pop()
        pids.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                left += map(int, children.read_text().split())
    return pids


def _begun(pids: Sequence[int]) -> dict[int, str]:
    """When each that there is was started: a number may be another process's by now."""
    begun = {}
    for pid in pids:
        with suppress(OSError):
            fields = _stat(pid)
            if fields[0] != "Z":
                begun[pid] = fields[19]
    return begun


def _still_there(begun: Mapping[int, str]) -> list[int]:
    """The processes that still run, compared by their start time."""
    now = _begun(list(begun))
    return [pid for pid in now if now[pid] == begun[pid]]


async def cancelled_by_signals(work: Coroutine[Any, Any, T]) -> T:
    """SIGINT, SIGTERM and SIGHUP cancel the work, which ends what it has started. Raises `CancelledError`."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    return await work
