"""The first process of a sandbox, run by path as ``python -I -S``: it imports little, all standard library.

``init.py MODE LIFELINE PARENT COMMAND...`` runs COMMAND so that nothing of it outlives the process PARENT,
which holds the writing end of the pipe LIFELINE. MODE is one of

``namespaces``
    Makes pid, mount, network and ipc namespaces, with a /proc and /dev/shm of their own and nothing but
    loopback, and forks the pid 1 that runs COMMAND as pid 2. Whoever dies first takes the rest along: pid 1
    ends at the end of the lifeline and by PR_SET_PDEATHSIG, and the kernel ends a pid namespace with pid 1.
``plain``
    For a platform that forbids namespaces: a subreaper that ends its descendants at the lifeline's end.
``probe``
    Tries the namespaces and ends with 0, or prints why they cannot be had and ends with 1.

SIGTERM is passed on to COMMAND. The exit status is COMMAND's, 128 + signal where a signal ended it.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
EXEC_FAILED = 127


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

    def unshare(self, flags: int) -> None:
        self._check("unshare", self._libc.unshare(flags))

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
    _raise_loopback()


def _spawn(command: list[str], libc: _Libc) -> int:
    """Start the command in a session of its own; the kernel is asked to end it with this process."""
    pid = os.fork()
    if pid:
        return pid
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error}\n".encode())
    finally:
        os._exit(EXEC_FAILED)


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


def _kill_descendants() -> None:
    children = _children_of()
    pending = list(children.get(os.getpid(), ()))
    while pending:
        pid = pending.pop()
        pending.extend(children.get(pid, ()))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _end_all() -> None:
    """Kill every descendant and return when the last one has been reaped."""
    while True:
        if os.getpid() == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        else:
            _kill_descendants()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


class _Supervisor:
    """Reaps, passes SIGTERM on, and ends everything with the command or with the lifeline."""

    def __init__(self, lifeline: int) -> None:
        self._lifeline = lifeline
        self._main = 0
        self._terminate = False
        self._signals, wake = os.pipe()
        os.set_blocking(self._signals, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_terminate(self, *_: object) -> None:
        self._terminate = True

    def run(self, command: list[str], libc: _Libc) -> int:
        self._main = _spawn(command, libc)
        status = self._watch()
        _end_all()
        return status

    def _watch(self) -> int:
        poll = select.poll()
        poll.register(self._lifeline, select.POLLIN | select.POLLHUP)
        poll.register(self._signals, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._lifeline in ready and not os.read(self._lifeline, 64):
                return 128 + signal.SIGKILL
            if self._signals in ready:
                os.read(self._signals, 4096)
            if self._terminate:
                self._terminate = False
                os.kill(self._main, signal.SIGTERM)
            status = self._reap()
            if status is not None:
                return status

    def _reap(self) -> int | None:
        """Collect the dead; the exit status once the command itself is among them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return EXEC_FAILED
            if pid == 0:
                return None
            if pid == self._main:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


def _enter_namespaces(libc: _Libc) -> int:
    """Unshare and fork: 0 in the new pid 1, else its pid. SIGTERM and SIGCHLD are blocked in both."""
    libc.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
    return os.fork()


def _first_process(lifeline: int, command: list[str], libc: _Libc) -> int:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        _furnish(libc)
    except OSError as error:
        os.write(2, f"cannot furnish the sandbox: {error}\n".encode())
        return EXEC_FAILED
    supervisor = _Supervisor(lifeline)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return supervisor.run(command, libc)


def _stand_by(pid: int) -> int:
    """Outside: pass SIGTERM on to pid 1 and end as it does."""
    while True:
        number = signal.sigwait((signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
        if number == signal.SIGTERM:
            os.kill(pid, signal.SIGTERM)
        elif number == signal.SIGCHLD:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


def _in_namespaces(lifeline: int, parent: int, command: list[str], libc: _Libc) -> int:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return EXEC_FAILED
    pid = _enter_namespaces(libc)
    if pid == 0:
        os._exit(_first_process(lifeline, command, libc))
    return _stand_by(pid)


def _plain(lifeline: int, command: list[str], libc: _Libc) -> int:
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    return _Supervisor(lifeline).run(command, libc)


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
    mode, lifeline, parent, command = arguments[0], int(arguments[1]), int(arguments[2]), arguments[3:]
    os.set_inheritable(lifeline, False)
    if mode == "namespaces":
        return _in_namespaces(lifeline, parent, command, libc)
    return _plain(lifeline, command, libc)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
