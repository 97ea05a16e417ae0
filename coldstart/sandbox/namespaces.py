"""Running a command of which nothing outlives this process, whatever ends this process, SIGKILL included.

Where the platform permits, the command gets pid, mount, network (loopback only) and ipc namespaces, and a
root folder that holds what it needs and nothing else. It runs as a user without any capability, under a
filter of system calls. ``coldstart/sandbox/init.py`` runs inside and says how the ending works. Without the
privilege the command runs as this process's user, in plain sight, under a subreaper, which ends all its
descendants: then a SIGKILL that hits the subreaper *and* this process at once can leave grandchildren of it
behind, and there is no private network.
"""

import asyncio
import binascii
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldstart.sandbox import call_filter, process_tree
from coldstart.sandbox.control_groups import ControlGroup, Limits, MemoryKills
from coldstart.sandbox.mounts import Mount, OwnerMaps, opened
from coldstart.sandbox.root_layout import RootLayout

_INIT = Path(__file__).with_name("init.py")
_PROBE_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 10.0
_logger = logging.getLogger("torpor.sandbox")


FIRST_UID = 0x70000000
"""The users of sandboxes have uids from this one on: above those that systemd gives to containers, below the
range that it leaves to programs with signed numbers (systemd's ``UIDS-GIDS``)."""
_UIDS = 1 << 27


def uid_of(name: str) -> int:
    """The uid and gid of the sandboxes with this name: the same on every machine.

    Two of a hundred names have the same one with a probability of 4 in 100,000.
    """
    digest = hashlib.blake2s(name.encode(), digest_size=8).digest()
    return FIRST_UID + int.from_bytes(digest, "big") % _UIDS


class SandboxError(Exception):
    """A sandbox could not be started."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """What separates a sandbox from its host here. ``missing``: what does not, and why, by its name.

    ``namespaces``: namespaces, a root folder and a user of its own. ``call_filter``: a filter of system
    calls.
    """

    namespaces: bool
    call_filter: bool = True
    missing: Mapping[str, str] = field(default_factory=dict)

    def without(self, name: str, reason: str, *, call_filter: bool | None = None) -> "Isolation":
        """The same, where one more thing is missing."""
        filtered = self.call_filter if call_filter is None else call_filter
        return Isolation(self.namespaces, filtered, {**self.missing, name: reason})


def _interpreter() -> list[str]:
    return [sys.executable, "-I", "-S", str(_INIT)]


async def probe(layout: RootLayout, *, call_filter: bool = True) -> Isolation:
    """Try the namespaces and the root folder out (about 30 ms)."""
    return await asyncio.to_thread(_probe, layout, call_filter)


def _probe(layout: RootLayout, call_filter: bool) -> Isolation:
    missing = {} if call_filter else {"call filter": "no list of system calls was made for GPUs"}
    reason = _refusal(layout)
    if reason is not None:
        missing["namespaces"] = reason
    return Isolation(reason is None, call_filter, missing)


def _refusal(layout: RootLayout) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and file
            [*_interpreter(), "probe", str(FIRST_UID)],
            input=layout.description(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "trying namespaces took too long"
    if done.returncode == 0:
        return None
    return done.stdout.decode(errors="replace").strip() or "unknown"


class Sandbox:
    """Processes that end with this one. Make it with `launch`; `wait` must be awaited to its end."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        control: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        control_socket: socket.socket,
        isolation: Isolation,
        group: ControlGroup | None,
    ) -> None:
        self._process = process
        self._group = group
        self.memory_kills: MemoryKills | None = None
        """What the kernel has ended for want of memory, once all has ended; None if it does not tell."""
        self._reader, self._writer = control
        self._control_socket = control_socket
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

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, uid: int | None = None
    ) -> int:
        """Start the main command (argv, the first an executable): the sandbox ends with it.

        It is the user and group ``uid``; None: this process's. Its pid, as the sandbox counts.
        """
        program = call_filter.program() if self.isolation.call_filter else None
        encoded = None if program is None else binascii.b2a_base64(program, newline=False).decode()
        request = {"argv": list(argv), "env": dict(env), "cwd": str(cwd), "uid": uid, "filter": encoded}
        return int((await self._ask((), do="run", **request))["pid"])

    async def help(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        main: int | None = None,
        real_uid: int | None = None,
    ) -> int:
        """Run another command to its end, with the capabilities of the sandbox's first process.

        Its output goes to the file ``log``, a path in the sandbox. Where it succeeds and ``main`` is a pid,
        that process is the main command from now on. ``real_uid``: its real uid and gid, if not this
        process's. Its exit status, 128 + n for signal n.
        """
        request = {"argv": list(argv), "env": dict(env), "cwd": str(cwd), "log": str(log), "main": main}
        return int((await self._ask((), do="help", real_uid=real_uid, **request))["code"])

    async def mount_engine(
        self,
        mounts: Sequence[Mount],
        owners: OwnerMaps,
        *,
        uid: int | None = None,
        copies: Mapping[Path, Path] | None = None,
    ) -> None:
        """Show files and folders of the host in the sandbox, and copy files within it.

        ``uid``: the user whom files belong to that have another owner on the host. ``copies``: a regular
        file, or a folder whose regular files are copied, by target; both are paths in the sandbox. Raises
        `SandboxError`, OSError.
        """
        pairs = [[str(source), str(target)] for target, source in (copies or {}).items()]
        targets = [str(mount.target) for mount in mounts]
        if not owners.has(mounts, uid):
            await asyncio.to_thread(owners.prepare, mounts, uid)
        with opened(mounts, owners, uid) as trees:
            await self._ask(trees, do="mount_engine", targets=targets, copies=pairs)

    async def unmount(self, target: Path) -> None:
        """Take a mount away that `mount_engine` has made."""
        await self._ask(do="unmount", target=str(target))

    def limit(self, limits: Limits) -> None:
        """Set what everything in it may use. Nothing happens without control groups. Raises OSError."""
        if self._group is not None:
            self._group.limit(limits)

    async def signal_all(self, number: int) -> None:
        """Send a signal to everything that was started in the sandbox."""
        await self._ask(do="signal", number=number, all=True)

    async def _ask(self, descriptors: Sequence[int] = (), **request: Any) -> dict[str, Any]:
        async with self._asking:
            if self._unanswered:
                raise SandboxError("an earlier request was given up before its answer")
            self._unanswered = True
            try:
                line = json.dumps(request).encode() + b"\n"
                if descriptors:
                    # Nothing is waiting to be written: every earlier request has been answered. A part of a
                    # line is not sent: it is far smaller than the socket's buffer.
                    socket.send_fds(self._control_socket, [line], list(descriptors))
                else:
                    self._writer.write(line)
                return await self._answer()
            except OSError as error:
                raise SandboxError(f"the sandbox has ended: {error}") from error

    async def describe(self, description: bytes) -> None:
        """Say what it is to be like, and wait until it is ready. Raises `SandboxError`."""
        self._writer.write(description)
        await self._answer()

    async def _answer(self) -> dict[str, Any]:
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
        if self._group is not None:
            group, self._group = self._group, None
            self.memory_kills = group.memory_kills()
            await asyncio.to_thread(_remove, group)
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
            if self._group is not None:
                self._group.kill()
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


def _remove(group: ControlGroup) -> None:
    try:
        group.remove()
    except OSError as error:
        _logger.warning("a control group is left: %s", error)


async def launch(
    isolation: Isolation, layout: RootLayout, *, cwd: Path, output: int, group: ControlGroup | None = None
) -> Sandbox:
    """A sandbox in which nothing runs yet. What runs there has both its outputs on the descriptor ``output``.

    ``layout``: what its root folder holds, if it has namespaces. ``cwd``: a folder of the host, by which the
    sandbox's processes can be known. ``group``: the control group that they will be in, which is removed with
    the sandbox.
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
            if group is not None:
                _remove(group)
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
            if group is not None:
                _remove(group)
            if isinstance(error, OSError):
                raise SandboxError(f"cannot start a sandbox: {error}") from error
            raise
    sandbox = Sandbox(process, connection, ours, isolation, group)
    try:
        await sandbox.describe(layout.description(() if group is None else group.entries))
    except BaseException:
        await sandbox.kill()
        raise
    return sandbox
