"""Running a command of which nothing outlives this process, whatever ends this process, SIGKILL included.

Where the platform permits, the command gets pid, mount, network (loopback only) and ipc namespaces, a /proc
and a /dev/shm of its own. ``coldstart/sandbox/init.py`` runs inside and says how the ending works. Without
the privilege the command runs in plain sight under a subreaper, which ends all its descendants: then a
SIGKILL that hits the subreaper *and* this process at once can leave grandchildren of it behind, and there is
no private network.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldstart.sandbox import process_tree

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
    """Processes that end with this one. Make it with `launch`; `wait` must be awaited to its end."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        control: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        isolation: Isolation,
    ) -> None:
        self._process = process
        self._reader, self._writer = control
        self._asking = asyncio.Lock()
        self._unanswered = False  # if not `_asking`: an answer is under way that no caller waits for
        self.isolation = isolation

    @property
    def pid(self) -> int:
        """The outermost process, as this process sees it."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.returncode is None

    def pids(self) -> list[int]:
        """Every process of the sandbox, as this process sees them."""
        return process_tree.descendants(self._process.pid) if self._process.returncode is None else []

    def inner_pids(self) -> list[int]:
        """The processes that were started in it, as this process sees them."""
        own_processes = 2 if self.isolation.namespaces else 1
        return self.pids()[own_processes:]

    async def run(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> int:
        """Start the main command (argv, the first an executable): the sandbox ends with it.

        Its pid, as the sandbox counts.
        """
        return int((await self._ask(do="run", argv=list(argv), env=dict(env), cwd=str(cwd)))["pid"])

    async def help(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, main: int | None = None
    ) -> int:
        """Run a command to its end, its output in the file ``log``. Its exit status, 128 + n for signal n.

        Where it ends with 0 and ``main`` is given, the process of this pid (the sandbox's own count), which
        the command has left behind, is the main command from now on.
        """
        request = {"argv": list(argv), "env": dict(env), "cwd": str(cwd), "log": str(log), "main": main}
        return int((await self._ask(do="help", **request))["code"])

    async def mount_engine(
        self, *, binds: Mapping[Path, Path] | None = None, copies: Mapping[Path, Path] | None = None
    ) -> None:
        """Show folders inside the sandbox, and copy files (or all files of a folder) into it: by target."""
        pairs = [
            [[str(source), str(target)] for target, source in (m or {}).items()] for m in (binds, copies)
        ]
        await self._ask(do="mount_engine", binds=pairs[0], copies=pairs[1])

    async def signal_all(self, number: int) -> None:
        """Send a signal to everything that was started in the sandbox."""
        await self._ask(do="signal", number=number, all=True)

    async def _ask(self, **request: Any) -> dict[str, Any]:
        async with self._asking:
            if self._unanswered:
                raise SandboxError("an earlier request was given up before its answer")
            self._unanswered = True
            try:
                self._writer.write(json.dumps(request).encode() + b"\n")
                return await self.answer()
            except OSError as error:
                raise SandboxError(f"the sandbox has ended: {error}") from error

    async def answer(self) -> dict[str, Any]:
        """The next answer of the sandbox; the first one says that it is ready. Raises `SandboxError`."""
        line = await self._reader.readline()
        if not line:
            raise SandboxError("the sandbox has ended")
        self._unanswered = False
        answer: dict[str, Any] = json.loads(line)
        if answer["error"] is not None:
            raise SandboxError(answer["error"])
        return answer

    async def wait(self) -> int:
        """Wait until everything in the sandbox has ended. The command's exit status, 128 + n for signal n."""
        code = await self._process.wait()
        self._writer.close()
        return code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """Ask the command to end (SIGTERM)."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def kill(self) -> int:
        """End everything at once and wait for it. Bounded; `SandboxError` when something does not die."""
        self._writer.close()
        try:
            return await asyncio.wait_for(self.wait(), _KILL_TIMEOUT_S)
        except TimeoutError:
            for pid in reversed(self.pids()):
                _kill(pid)
        try:
            return await asyncio.wait_for(self.wait(), _KILL_TIMEOUT_S)
        except TimeoutError as error:
            raise SandboxError(f"processes {self.pids()} survive SIGKILL") from error


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


async def launch(isolation: Isolation, *, cwd: Path, output: int) -> Sandbox:
    """A sandbox in which nothing runs yet. What runs there has both its outputs on the descriptor ``output``.

    Call it from a thread that lives as long as the sandbox may: the kernel ends the sandbox with the thread.
    Raises `SandboxError`.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        # Connected before the process starts: nothing is awaited between its start and its owner, so a
        # cancellation leaves no process behind.
        try:
            connection = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        try:
            process = await asyncio.create_subprocess_exec(
                *_interpreter(),
                "namespaces" if isolation.namespaces else "plain",
                str(theirs.fileno()),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                cwd=cwd,
                start_new_session=True,
            )
        except BaseException as error:
            connection[1].close()
            if isinstance(error, OSError):
                raise SandboxError(f"cannot start a sandbox: {error}") from error
            raise
    sandbox = Sandbox(process, connection, isolation)
    try:
        await sandbox.answer()
    except BaseException:
        await sandbox.kill()
        raise
    return sandbox
