"""Running a command so that nothing of it outlives this process, whatever ends this one, SIGKILL included.

Where the platform permits, the command gets pid, mount, network (loopback only) and ipc namespaces, a /proc
and a /dev/shm of its own. ``coldstart/init.py`` runs inside and says how the ending works. Without the
privilege the command runs in plain sight under a subreaper, which ends all its descendants: then a SIGKILL
that hits the subreaper *and* this process at once can leave grandchildren of it behind, and there is no
private network.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coldstart import trees

_INIT = Path(__file__).with_name("init.py")
_PROBE_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 10.0


class SandboxError(Exception):
    """A sandbox could not be started."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What the platform permits. ``reason`` says why there are no namespaces."""

    namespaces: bool
    reason: str | None = None


def _interpreter() -> list[str]:
    return [sys.executable, "-I", "-S", str(_INIT)]


async def probe() -> Isolation:
    """Try the namespaces out (about 30 ms)."""
    return await asyncio.to_thread(_probe)


def _probe() -> Isolation:
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and file
            [*_interpreter(), "probe"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Isolation(namespaces=False, reason="trying namespaces took too long")
    if done.returncode == 0:
        return Isolation(namespaces=True)
    return Isolation(namespaces=False, reason=done.stdout.decode(errors="replace").strip() or "unknown")


class Sandbox:
    """A command that runs in a sandbox. Make one with `launch`; `wait` must be awaited to its end."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: int, isolation: Isolation) -> None:
        self._process = process
        self._lifeline: int | None = lifeline
        self._isolation = isolation

    @property
    def pid(self) -> int:
        """The outermost process, as this process sees it."""
        return self._process.pid

    def pids(self) -> list[int]:
        """Every process of the sandbox, as this process sees them."""
        return trees.descendants(self._process.pid) if self._process.returncode is None else []

    async def wait(self) -> int:
        """Wait until everything in the sandbox has ended. The command's exit status, 128 + n for signal n."""
        code = await self._process.wait()
        self._cut()
        return code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """Ask the command to end (SIGTERM)."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def kill(self) -> int:
        """End everything at once and wait for it. Bounded; `SandboxError` when something does not die."""
        self._cut()
        try:
            return await asyncio.wait_for(self.wait(), _KILL_TIMEOUT_S)
        except TimeoutError:
            for pid in reversed(self.pids()):
                _kill(pid)
        try:
            return await asyncio.wait_for(self.wait(), _KILL_TIMEOUT_S)
        except TimeoutError as error:
            raise SandboxError(f"processes {self.pids()} survive SIGKILL") from error

    def _cut(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


async def launch(
    command: Sequence[str],
    *,
    isolation: Isolation,
    env: Mapping[str, str],
    cwd: Path,
    output: int,
) -> Sandbox:
    """Run ``command`` (argv, the first an executable) with both its outputs on the descriptor ``output``.

    Call it from a thread that lives as long as the command may: the kernel ends the sandbox with the thread.
    """
    reading, writing = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *_interpreter(),
            "namespaces" if isolation.namespaces else "plain",
            str(reading),
            str(os.getpid()),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(reading,),
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        os.close(writing)
        raise SandboxError(f"cannot start a sandbox: {error}") from error
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return Sandbox(process, writing, isolation)
