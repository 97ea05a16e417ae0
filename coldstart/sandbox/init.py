"""The first process of a sandbox, run by path as ``python -I -S``: it imports little, all standard library.

``init.py MODE CONTROL PARENT`` does what the process PARENT asks over the socket CONTROL, and ends with it.
Nothing that it started outlives either. MODE is one of

``namespaces``
    Makes pid, mount, network and ipc namespaces, with a /proc, /dev/shm and /run of their own and nothing but
    loopback, and forks the pid 1 that serves. If one of them dies, all end: pid 1 ends with the
    socket and by PR_SET_PDEATHSIG, and the kernel ends a pid namespace with pid 1.
``plain``
    For a platform that forbids namespaces: a subreaper that ends its descendants with the socket.
``probe``
    Tries the namespaces and ends with 0, or prints why they cannot be had and ends with 1.

A request is a line of JSON, and so is its answer: ``{"error": null}`` or what went wrong.

``{"do": "run", "argv", "env", "cwd"}``
    Starts the main command; its exit status (128 + signal where a signal ended it) becomes this process's.
    The answer has its ``pid``, as the sandbox counts. It has no_new_privs, and of the capabilities only
    CAP_DAC_READ_SEARCH, if this process has it.
``{"do": "help", "argv", "env", "cwd", "log", "main"}``
    Runs a command to its end with its output in the file ``log``; the answer has its ``code``. Where that is
    0 and ``main`` is a pid, this is the main command from now on (CRIU's restored tree).
``{"do": "mount_engine", "binds", "copies"}``
    Both are lists of pairs ``[source, target]``. Shows each bound folder at its target below /run, in this
    sandbox alone, instead of the one before, and copies each file, or the files of a folder, into it.
``{"do": "signal", "number", "all"}``
    Sends a signal to the main command, or to everything in the sandbox but this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
MNT_DETACH, EXEC_FAILED, PIECE = 2, 127, 4096
# The main command's pids begin above this one: CRIU, which restores a tree with the pids that it had, is a
# process of the sandbox too and must find them free.
LAST_HELPER_PID = 99
# Reading files whatever their mode: the files of a model may belong to another user, and be private.
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522


class _Libc:
    """The calls that Python 3.11 does not have, raising OSError like its own."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _check(self, what: str, result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")

    def prctl(self, option: int, value: int) -> None:
        self._check("prctl", self._libc.prctl(option, value, 0, 0, 0))

    def limit_capabilities(self, allowed: int) -> None:
        """Give up, for good, all capabilities but those of the mask ``allowed`` that this process has."""
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: bits 0 to 31, then 32 to 63
        self._check("capget", self._libc.capget(header, sets))
        for number in range(64):
            if not allowed >> number & 1:
                try:
                    self.prctl(PR_CAPBSET_DROP, number)
                except OSError as error:
                    if error.errno == errno.EINVAL:  # one more than the kernel knows
                        break
                    if error.errno != errno.EPERM:  # without CAP_SETPCAP, no_new_privs keeps the others away
                        raise
        low, high = allowed & 0xFFFFFFFF, allowed >> 32
        kept = [sets[0] & low, sets[1] & low, 0, sets[3] & high, sets[4] & high, 0]
        self._check("capset", self._libc.capset(header, (ctypes.c_uint32 * 6)(*kept)))

    def unshare(self, flags: int) -> None:
        self._check("unshare", self._libc.unshare(flags))

    def unmount(self, target: str) -> None:
        self._check(f"unmount {target}", self._libc.umount2(target.encode(), MNT_DETACH))

    def mount(self, source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        arguments = [None if a is None else a.encode() for a in (source, target, kind, data)]
        result = self._libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3])
        self._check(f"mount {target}", result)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _furnish(libc: _Libc) -> None:
    """Inside the new namespaces: mounts and loopback of their own."""
    libc.mount("none", "/", None, MS_REC | MS_PRIVATE)
    libc.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    libc.mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")  # noqa: S108
    libc.mount("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    _raise_loopback()


def _exec(argv: list[str], env: dict[str, str], cwd: str) -> None:
    for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Mounted again: CRIU finds no file of a mount namespace that is not its own.
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    os.chdir(cwd)
    os.execvpe(argv[0], argv, env)  # noqa: S606


def _spawn(libc: _Libc, request: dict[str, Any], log: int | None = None) -> int:
    """Start a command in a session of its own; its outputs go where this process's go, or to ``log``."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if os.getppid() != 1:  # in a pid namespace the kernel ends it anyway, and CRIU would keep the setting
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.umask(0o077)  # other users must not read images of memory
        if log is None:  # CRIU, which has a log, needs what this process may
            libc.limit_capabilities(1 << CAP_DAC_READ_SEARCH)
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1)
        else:
            os.dup2(log, 1)
            os.dup2(log, 2)
        _exec(request["argv"], request["env"], request["cwd"])
    except OSError as error:
        os.write(2, f"cannot run {request['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(EXEC_FAILED)


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _copy(source: str, target: str) -> None:
    """Copy a file with its mode; pages of zeros stay holes."""
    with open(source, "rb") as reading, open(target, "wb") as writing:
        status = os.fstat(reading.fileno())
        os.fchmod(writing.fileno(), status.st_mode & 0o777)
        while piece := reading.read(PIECE):
            if piece.count(0) == len(piece):
                writing.seek(len(piece), os.SEEK_CUR)
            else:
                writing.write(piece)
        writing.truncate(status.st_size)


def _children_of() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as stat:
                parent = int(stat.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(name))
    return children


def _signal_all(number: int) -> None:
    """Everything below this process: in a pid namespace the kernel knows it, elsewhere /proc tells."""
    if os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)
        return
    children = _children_of()
    pending = list(children.get(os.getpid(), ()))
    while pending:
        pid = pending.pop()
        pending.extend(children.get(pid, ()))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _end_all() -> None:
    """Kill every descendant and return when the last one has been reaped."""
    while True:
        _signal_all(signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


class _Supervisor:
    """Reaps, does what it is asked, and ends everything with the main command or with the control socket."""

    def __init__(self, control: socket.socket, libc: _Libc) -> None:
        self._control = control
        self._libc = libc
        self._received = b""
        self._main = 0
        self._helper = 0
        self._helping: dict[str, Any] = {}
        self._bound: set[str] = set()
        self._signals, wake = os.pipe()
        os.set_blocking(self._signals, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._terminate())
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(self) -> int:
        self._answer(None)  # ready
        status = self._watch()
        _end_all()
        return status

    def _terminate(self) -> None:
        if self._main:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._main, signal.SIGTERM)

    def _watch(self) -> int:
        poll = select.poll()
        poll.register(self._control, select.POLLIN | select.POLLHUP)
        poll.register(self._signals, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._control.fileno() in ready and not self._read():
                return 128 + signal.SIGKILL
            if self._signals in ready:
                os.read(self._signals, 4096)
            status = self._reap()
            if status is not None:
                return status

    def _read(self) -> bool:
        """Do what the other side has sent; False if it has closed the socket."""
        try:
            data = self._control.recv(65536)
        except ConnectionResetError:
            return False
        self._received += data
        *requests, self._received = self._received.split(b"\n")
        for request in requests:
            self._do(json.loads(request))
        return bool(data)

    def _do(self, request: dict[str, Any]) -> None:
        try:
            if request["do"] == "help":
                self._help(request)
                return  # answered when it has ended
            if request["do"] == "run":
                self._main = self._run(request)
                self._answer(None, pid=self._main)
                return
            if request["do"] == "mount_engine":
                self._furnish(request)
            elif request["all"]:
                _signal_all(request["number"])
            elif self._main:
                os.kill(self._main, request["number"])
        except OSError as error:
            self._answer(str(error))
        else:
            self._answer(None)

    def _furnish(self, request: dict[str, Any]) -> None:
        for source, target in request["binds"]:
            if target in self._bound:  # the folder that was shown there may be gone
                self._libc.unmount(target)
                self._bound.discard(target)
            os.makedirs(target, 0o700, exist_ok=True)
            self._libc.mount(source, target, None, MS_BIND)
            self._bound.add(target)
        for source, target in request["copies"]:
            if os.path.isdir(source):
                for name in os.listdir(source):
                    _copy(os.path.join(source, name), os.path.join(target, name))
            else:
                _copy(source, target)

    def _run(self, request: dict[str, Any]) -> int:
        if os.getpid() == 1:
            with open("/proc/sys/kernel/ns_last_pid", "w") as last:
                last.write(str(LAST_HELPER_PID))
        return _spawn(self._libc, request)

    def _help(self, request: dict[str, Any]) -> None:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._helping = request
        self._helper = _spawn(self._libc, request, log)
        os.close(log)

    def _answer(self, error: str | None, **more: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.sendall(json.dumps({"error": error, **more}).encode() + b"\n")

    def _reap(self) -> int | None:
        """Collect the dead; the exit status once the main command itself is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return EXEC_FAILED if self._main else None
            if pid == 0:
                return None
            if pid == self._helper:
                self._helped(_exit_status(status))
            elif pid == self._main:
                return _exit_status(status)

    def _helped(self, code: int) -> None:
        self._helper = 0
        if code == 0 and self._helping["main"]:
            self._main = self._helping["main"]
        self._answer(None, code=code)


def _enter_namespaces(libc: _Libc) -> int:
    """Unshare and fork: 0 in the new pid 1, else its pid. SIGTERM and SIGCHLD are blocked in both."""
    libc.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
    return os.fork()


def _first_process(control: int, libc: _Libc) -> int:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        _furnish(libc)
    except OSError as error:
        os.write(2, f"cannot prepare the sandbox: {error}\n".encode())
        return EXEC_FAILED
    return _serve(control, libc)


def _serve(control: int, libc: _Libc) -> int:
    with socket.socket(fileno=control) as served:
        supervisor = _Supervisor(served, libc)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return supervisor.run()


def _stand_by(pid: int) -> int:
    """Outside: pass SIGTERM on to pid 1 and end as it does."""
    while True:
        number = signal.sigwait((signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
        if number == signal.SIGTERM:
            os.kill(pid, signal.SIGTERM)
        elif number == signal.SIGCHLD:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return _exit_status(status)


def _in_namespaces(control: int, parent: int, libc: _Libc) -> int:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return EXEC_FAILED
    pid = _enter_namespaces(libc)
    if pid == 0:
        os._exit(_first_process(control, libc))
    os.close(control)
    return _stand_by(pid)


def _probe(libc: _Libc) -> int:
    try:
        pid = _enter_namespaces(libc)
        if pid == 0:
            try:
                _furnish(libc)
            except OSError as error:
                print(error, flush=True)
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except OSError as error:
        print(error, flush=True)
        return 1


def main(arguments: list[str]) -> int:
    libc = _Libc()
    if arguments[0] == "probe":
        return _probe(libc)
    mode, control, parent = arguments[0], int(arguments[1]), int(arguments[2])
    os.set_inheritable(control, False)
    # What the parent's event loop left open would lie in the engine, and CRIU would not find its mount.
    os.closerange(3, control)
    os.closerange(control + 1, os.sysconf("SC_OPEN_MAX"))
    if mode == "namespaces":
        return _in_namespaces(control, parent, libc)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    return _serve(control, libc)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
