"""The first process of a sandbox, run by path as ``python -I -S``: it imports little, all standard library.

``init.py MODE CONTROL PARENT`` does what the process PARENT asks over the socket CONTROL, and ends with it.
Nothing that it started outlives either. MODE is one of

``namespaces``
    Makes pid, mount, network and ipc namespaces, and in them a root folder of its own: a tmpfs with what the
    parent has listed, read-only, a /proc, /dev, /tmp and /run of its own, and loopback. The host's files are
    not reachable from there, not even for this process. Then it forks the pid 1 that serves. If one of
    them dies, all end: pid 1 ends with the socket and by PR_SET_PDEATHSIG, and the kernel ends a pid
    namespace with pid 1.
``plain``
    For a platform that forbids namespaces: a subreaper that ends its descendants with the socket.
``probe``
    ``init.py probe UID`` makes such namespaces and such a root folder, becomes the user UID, and ends with 0,
    or prints why this cannot be had and ends with 1. The description comes from its standard input.
``user_namespace``
    Makes a user namespace, writes a line, and keeps it until its standard input is closed.

The parent writes a line of JSON first, the description of the sandbox (`coldstart.sandbox.root_layout`):
``{"enter": [FILE], "binds": [[SOURCE, TARGET]], "devices": [SOURCE], "links": [[TEXT, TARGET]],
"files": [[TEXT, TARGET]]}``. ``enter`` are the ``cgroup.procs`` files of the sandbox's control groups;
targets are paths in the sandbox. The first answer says that the sandbox is ready.

A request is a line of JSON, and so is its answer: ``{"error": null}`` or what went wrong.

``{"do": "run", "argv", "env", "cwd", "uid", "filter"}``
    Starts the main command; its exit status (128 + signal where a signal ended it) becomes this process's.
    The answer has its ``pid``, as the sandbox counts. It has no capabilities and no_new_privs, the uid and
    gid ``uid`` if that is not null, and the seccomp program ``filter`` (base64,
    `coldstart.sandbox.call_filter`) if that is not null.
``{"do": "help", "argv", "env", "cwd", "log", "main", "real_uid"}``
    Runs a command to its end with its output in the file ``log``; the answer has its ``code``. If that is 0
    and ``main`` is a pid, this is the main command from now on (CRIU's restored tree). It has the
    capabilities of this process; its real uid and gid are ``real_uid`` if that is not null.
``{"do": "mount_engine", "targets", "copies"}``
    With the request come the descriptors of detached mounts (open_tree(2)), one for each target: they are
    mounted there, instead of what was mounted there before. ``copies`` are pairs ``[source, target]`` of
    paths in the sandbox: regular files, or folders whose regular files are copied, with their owners.
``{"do": "unmount", "target"}``
    Takes such a mount of a folder away, and the folder that it was on.
``{"do": "signal", "number", "all"}``
    Sends a signal to the main command, or to everything in the sandbox but this process.

The system calls: open_tree(2), move_mount(2), mount_setattr(2), pivot_root(2), seccomp(2), capset(2).
"""

from __future__ import annotations

import binascii
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
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
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 0x20
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
# System calls that the C library of Debian 12 has no function for, by their numbers on x86-64.
SYS_PIVOT_ROOT, SYS_SECCOMP, SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 155, 317, 428, 429, 442
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_IDMAP = 0x100000
SECCOMP_SET_MODE_FILTER = 1
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
EXEC_FAILED, PIECE = 127, 4096
MOST_MOUNTS = 250  # the kernel passes at most 253 descriptors with a message
# The main command's pids begin above this one: CRIU, which restores a tree with the pids that it had, is a
# process of the sandbox too and must find them free.
LAST_HELPER_PID = 99
CAPABILITY_VERSION_3 = 0x20080522
# What this process and CRIU need: without each of them a start, a dump or a restore fails (SYS_RESOURCE: if
# it is there). CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, KILL 5, SETGID 6, SETUID 7, SETPCAP 8, NET_ADMIN 12,
# SYS_CHROOT 18, SYS_PTRACE 19, SYS_ADMIN 21, SYS_RESOURCE 24, SYS_TIME 25.
HELPER_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 5, 6, 7, 8, 12, 18, 19, 21, 24, 25))
PROC, LAST_PID = "/proc", "/sys/kernel/ns_last_pid"
# Files of /proc that tell of the host, or act on it.
MASKED = ("kcore", "kallsyms", "kmsg", "keys", "timer_list", "sysrq-trigger", "kpagecount", "kpageflags")
DEVICES = ("null", "zero", "full", "random", "urandom")
SHM_SIZE = "512m"
SCRATCH = "/tmp"  # noqa: S108 - CRIU looks for it while it has not found out about the kernel


class Libc:
    """The calls that Python 3.11 does not have, raising OSError like its own."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _check(self, what: str, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")
        return result

    def _call(
        self, what: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None
    ) -> int:
        converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
        return self._check(what, int(self._libc.syscall(ctypes.c_long(number), *converted)))

    def prctl(self, option: int, value: int) -> None:
        self._check("prctl", self._libc.prctl(option, value, 0, 0, 0))

    def limit_capabilities(self, allowed: int) -> None:
        """Give up, for good, all capabilities but those of the mask ``allowed`` that this process has."""
        self.limit_bounding_set(allowed)
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: bits 0 to 31, then 32 to 63
        self._check("capget", self._libc.capget(header, sets))
        low, high = allowed & 0xFFFFFFFF, allowed >> 32
        kept = [sets[0] & low, sets[1] & low, 0, sets[3] & high, sets[4] & high, 0]
        self._check("capset", self._libc.capset(header, (ctypes.c_uint32 * 6)(*kept)))

    def limit_bounding_set(self, allowed: int) -> None:
        """Give up, for good, what a program that is executed could gain beyond the mask ``allowed``."""
        for number in range(64):
            if not allowed >> number & 1:
                try:
                    self.prctl(PR_CAPBSET_DROP, number)
                except OSError as error:
                    if error.errno == errno.EINVAL:  # one more than the kernel knows
                        break
                    if error.errno != errno.EPERM:  # without CAP_SETPCAP, no_new_privs keeps the others away
                        raise

    def filter_calls(self, program: bytes) -> None:
        """Install a seccomp program, an array of ``struct sock_filter``; children inherit it."""
        instructions = ctypes.create_string_buffer(program, len(program))
        argument = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
        self._call("seccomp", SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, 0, argument)

    def unshare(self, flags: int) -> None:
        self._check("unshare", self._libc.unshare(flags))

    def unmount(self, target: str) -> None:
        self._check(f"unmount {target}", self._libc.umount2(os.fsencode(target), MNT_DETACH))

    def mount(self, source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        arguments = [None if a is None else os.fsencode(a) for a in (source, target, kind, data)]
        result = self._libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3])
        self._check(f"mount {target}", result)

    def open_tree(self, source: str, attributes: int, user_namespace: int | None = None) -> int:
        """A descriptor of a detached copy of the mount at ``source``, and of those below it, with attributes.

        ``user_namespace``: maps the owners of files (MOUNT_ATTR_IDMAP).
        """
        flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
        tree = self._call(f"open {source}", SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), flags)
        try:
            mapped = 0 if user_namespace is None else MOUNT_ATTR_IDMAP
            attribute = struct.pack("QQQQ", attributes | mapped, 0, 0, user_namespace or 0)
            flags = AT_EMPTY_PATH | AT_RECURSIVE
            what = f"set the attributes of {source}"
            self._call(what, SYS_MOUNT_SETATTR, tree, b"", flags, attribute, len(attribute))
        except BaseException:
            os.close(tree)
            raise
        return tree

    def move_mount(self, tree: int, target: str) -> None:
        """Mount what `open_tree` has returned."""
        what, where = f"mount at {target}", os.fsencode(target)
        self._call(what, SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, where, MOVE_MOUNT_F_EMPTY_PATH)

    def pivot_root(self, new: str, old: str) -> None:
        self._call("pivot_root", SYS_PIVOT_ROOT, os.fsencode(new), os.fsencode(old))


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _make_place(target: str, *, folder: bool) -> None:
    os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
    if not folder and not os.path.lexists(target):
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _mount_proc(libc: Libc, root: str) -> None:
    proc = root + PROC
    os.mkdir(proc)
    # Other users' processes are not listed: init and CRIU, for an engine.
    libc.mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2")
    for name in MASKED:
        if os.path.exists(f"{proc}/{name}"):
            libc.mount("/dev/null", f"{proc}/{name}", None, MS_BIND)
    last_pid = libc.open_tree(proc + LAST_PID, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
    for name in ("sys", "irq", "bus"):
        if os.path.exists(f"{proc}/{name}"):
            libc.mount(f"{proc}/{name}", f"{proc}/{name}", None, MS_BIND)
            flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
            libc.mount("none", f"{proc}/{name}", None, flags)
    libc.move_mount(last_pid, proc + LAST_PID)  # root may write to it: this process does, and CRIU tries to
    os.close(last_pid)


def _mount_devices(libc: Libc, root: str, more: list[str]) -> None:
    devices = root + "/dev"
    os.mkdir(devices)
    libc.mount("dev", devices, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k")
    for path in (*(f"/dev/{name}" for name in DEVICES), *more):
        _make_place(root + path, folder=False)
        libc.mount(path, root + path, None, MS_BIND)
    for name, text in {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        os.symlink(f"/proc/self/{text}", f"{devices}/{name}")
    os.mkdir(devices + "/shm")
    libc.mount(
        "shm", devices + "/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"mode=1777,size={SHM_SIZE}"
    )


def _make_root(libc: Libc, description: dict[str, Any]) -> None:
    """Inside the new namespaces: a root folder of their own, and loopback."""
    libc.mount("none", "/", None, MS_REC | MS_PRIVATE)
    os.umask(0o022)  # an engine, which is another user, passes through these folders
    root = "/run"
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    # Opened before the mount that hides what the host has below /run.
    trees = [(libc.open_tree(source, attributes), target) for source, target in description["binds"]]
    libc.mount("root", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=2m")
    scratch = root + SCRATCH
    os.mkdir(scratch)
    libc.mount("tmp", scratch, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    for tree, target in trees:
        _make_place(root + target, folder=stat.S_ISDIR(os.fstat(tree).st_mode))
        libc.move_mount(tree, root + target)
        os.close(tree)
    for text, target in description["links"]:
        os.makedirs(os.path.dirname(root + target), exist_ok=True)
        os.symlink(text, root + target)
    for text, target in description["files"]:
        os.makedirs(os.path.dirname(root + target), exist_ok=True)
        with open(root + target, "w") as file:
            file.write(text)
    _mount_proc(libc, root)
    _mount_devices(libc, root, description["devices"])
    os.mkdir(root + "/run")
    libc.mount("run", root + "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    os.chdir(root)
    libc.pivot_root(".", ".")
    libc.unmount(".")
    os.chdir("/")
    libc.mount("none", "/", None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)
    libc.mount("none", "/dev", None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC)
    _raise_loopback()


def _exec(argv: list[str], env: dict[str, str], cwd: str) -> None:
    for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Mounted again: CRIU finds no file of a mount namespace that is not its own.
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    os.chdir(cwd)
    os.execvpe(argv[0], argv, env)  # noqa: S606


def _spawn(libc: Libc, request: dict[str, Any], log: int | None = None) -> int:
    """Start a command in a session of its own; its outputs go where this process's go, or to ``log``."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if os.getppid() != 1:  # in a pid namespace the kernel ends it anyway, and CRIU would keep the setting
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        os.umask(0o077)  # other users must not read images of memory
        if log is None:
            _give_up_authority(libc, request["uid"], request["filter"])
        else:
            os.dup2(log, 1)
            os.dup2(log, 2)
            if request["real_uid"] is not None:
                # prlimit(2) asks CAP_SYS_RESOURCE of those whose real ids differ from the other process's.
                os.setresgid(request["real_uid"], 0, 0)
                os.setresuid(request["real_uid"], 0, 0)
        _exec(request["argv"], request["env"], request["cwd"])
    except OSError as error:
        os.write(2, f"cannot run {request['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(EXEC_FAILED)


def _give_up_authority(libc: Libc, uid: int | None, program: str | None) -> None:
    """Become an unprivileged process, for good: the order matters, each step needs what the next gives up."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the host's handler of core dumps is not the engine's
    libc.limit_bounding_set(0)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc.limit_capabilities(0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1)
    if program is not None:
        libc.filter_calls(binascii.a2b_base64(program))


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _copy(source: str, target: str) -> None:
    """Copy a regular file with its mode and owner; pages of zeros stay holes. A link is not followed."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(source, os.O_RDONLY | flags), "rb") as reading:
        status = os.fstat(reading.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"{source} is not a regular file")
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600), "wb") as writing:
            while piece := reading.read(PIECE):
                if piece.count(0) == len(piece):
                    writing.seek(len(piece), os.SEEK_CUR)
                else:
                    writing.write(piece)
            writing.truncate(status.st_size)
            os.fchown(writing.fileno(), status.st_uid, status.st_gid)
            os.fchmod(writing.fileno(), status.st_mode & 0o777)


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

    def __init__(self, control: socket.socket, libc: Libc) -> None:
        self._control = control
        self._libc = libc
        self._received = b""
        self._trees: list[int] = []
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
            data, trees, _, _ = socket.recv_fds(self._control, 65536, MOST_MOUNTS)
        except ConnectionResetError:
            return False
        for tree in trees:
            os.set_inheritable(tree, False)
        self._trees += trees
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
                self._mount_engine(request)
            elif request["do"] == "unmount":
                self._unmount(request["target"])
                os.rmdir(request["target"])
            elif request["all"]:
                _signal_all(request["number"])
            elif self._main:
                os.kill(self._main, request["number"])
        except OSError as error:
            self._answer(str(error))
        else:
            self._answer(None)

    def _mount_engine(self, request: dict[str, Any]) -> None:
        trees, self._trees = self._trees, []
        try:
            for tree, target in zip(trees, request["targets"], strict=True):
                self._unmount(target)
                _make_place(target, folder=stat.S_ISDIR(os.fstat(tree).st_mode))
                self._libc.move_mount(tree, target)
                self._bound.add(target)
        finally:
            for tree in trees:
                os.close(tree)
        for source, target in request["copies"]:
            if os.path.isdir(source):
                for name in os.listdir(source):
                    if stat.S_ISREG(os.lstat(os.path.join(source, name)).st_mode):
                        _copy(os.path.join(source, name), os.path.join(target, name))
            else:
                _copy(source, target)

    def _unmount(self, target: str) -> None:
        if target in self._bound:
            self._libc.unmount(target)
            self._bound.discard(target)

    def _run(self, request: dict[str, Any]) -> int:
        if os.getpid() == 1:
            with open(PROC + LAST_PID, "w") as last:
                last.write(str(LAST_HELPER_PID))
        return _spawn(self._libc, request)

    def _help(self, request: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(request["log"], flags, 0o600)
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


def _description(control: int) -> dict[str, Any]:
    """The first line that the parent writes."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(control, 65536)
        if not data:
            raise OSError(errno.EPIPE, "the sandbox was not described")
        line += data
    description: dict[str, Any] = json.loads(line)
    return description


def _enter_groups(files: list[str]) -> None:
    for path in files:
        with open(path, "w") as processes:
            processes.write("0")


def _enter_namespaces(libc: Libc) -> int:
    """Unshare and fork: 0 in the new pid 1, else its pid. SIGTERM and SIGCHLD are blocked in both."""
    libc.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
    return os.fork()


def _first_process(control: int, libc: Libc, description: dict[str, Any]) -> int:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        _make_root(libc, description)
        libc.limit_capabilities(HELPER_CAPABILITIES)
    except OSError as error:
        os.write(2, f"cannot prepare the sandbox: {error}\n".encode())
        return EXEC_FAILED
    return _serve(control, libc)


def _serve(control: int, libc: Libc) -> int:
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


def _in_namespaces(control: int, parent: int, libc: Libc) -> int:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return EXEC_FAILED
    try:
        description = _description(control)
        _enter_groups(description["enter"])
    except OSError as error:
        os.write(2, f"cannot prepare the sandbox: {error}\n".encode())
        return EXEC_FAILED
    pid = _enter_namespaces(libc)
    if pid == 0:
        os._exit(_first_process(control, libc, description))
    os.close(control)
    return _stand_by(pid)


def _probe(uid: int, libc: Libc) -> int:
    try:
        description = _description(0)
        pid = _enter_namespaces(libc)
        if pid == 0:
            try:
                _make_root(libc, description)
                libc.limit_capabilities(HELPER_CAPABILITIES)
                _give_up_authority(libc, uid, None)
            except OSError as error:
                print(error, flush=True)
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except OSError as error:
        print(error, flush=True)
        return 1


def _keep_user_namespace(libc: Libc) -> int:
    try:
        libc.unshare(CLONE_NEWUSER)
    except OSError as error:
        print(error, flush=True)
        return 1
    print(flush=True)
    os.read(0, 1)
    return 0


def main(arguments: list[str]) -> int:
    libc = Libc()
    if arguments[0] == "probe":
        return _probe(int(arguments[1]), libc)
    if arguments[0] == "user_namespace":
        return _keep_user_namespace(libc)
    mode, control, parent = arguments[0], int(arguments[1]), int(arguments[2])
    os.set_inheritable(control, False)
    # What the parent's event loop left open would lie in the engine, and CRIU would not find its mount.
    os.closerange(3, control)
    os.closerange(control + 1, os.sysconf("SC_OPEN_MAX"))
    if mode == "namespaces":
        return _in_namespaces(control, parent, libc)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    _enter_groups(_description(control)["enter"])
    return _serve(control, libc)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
