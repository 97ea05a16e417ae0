"""What an engine that a stranger has taken over would try: read, write, escape, disturb.

An attempt succeeds if it returns, and is refused if it raises OSError. This file is imported in an engine's
sandbox (`loadtest.isolation_watch`): it needs nothing but the standard library.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PACKAGES = Path("/opt/torpor")
_MIB = 1 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)
# Numbers of system calls on x86-64 (asm/unistd_64.h) that Python has no function for.
_CALLS = {
    "ptrace": 101, "syslog": 103, "setgroups": 116, "capset": 126, "personality": 135,
    "pivot_root": 155, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166,
    "swapon": 167, "reboot": 169, "sethostname": 170, "ioperm": 173, "init_module": 175,
    "quotactl": 179, "clock_settime": 227, "kexec_load": 246, "add_key": 248, "keyctl": 250,
    "perf_event_open": 298, "fanotify_init": 300, "open_by_handle_at": 304, "setns": 308,
    "process_vm_readv": 310, "kcmp": 312, "memfd_create": 319, "bpf": 321, "userfaultfd": 323,
    "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442, "unshare": 272,
    "clone": 56, "chroot": 161, "mknod": 133, "iopl": 172,
}  # fmt: skip
_CLONE_NEWNS, _CLONE_NEWUSER, _SIGCHLD = 0x20000, 0x10000000, 17
_PTRACE_TRACEME, _PTRACE_ATTACH = 0, 16
_ABOVE_ANY_FILE = 1 << 40


def _call(name: str, *arguments: Any) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_LIBC.syscall(ctypes.c_long(_CALLS[name]), *converted))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _read(path: str | Path) -> str:
    with open(path, "rb") as file:
        content = file.read(4096)
    if not content:  # a file that is masked
        raise OSError(errno.ENODATA, "empty")
    return f"{len(content)} bytes"


def _write(path: str | Path, text: str = "x") -> str:
    with open(path, "a") as file:
        file.write(text)
    return "written"


def _connect(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> str:
    with socket.socket(family, kind) as connection:
        connection.settimeout(2)
        connection.connect(address)
    return "connected"


def _in_child(attempt: Callable[[], object]) -> str:
    """For what ends or changes the process that tries it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        outcome = b"broken"
        try:
            attempt()
            outcome = b""  # as a program that was executed
        except OSError as error:
            outcome = str(error.errno or errno.EIO).encode()
        finally:
            os.write(writing, outcome)
            os._exit(0)
    os.close(writing)
    answer = os.read(reading, 16)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        raise OSError(errno.EPERM, f"killed by signal {os.WTERMSIG(status)}")
    if answer:
        raise OSError(int(answer), os.strerror(int(answer)))
    return "done"


class EngineSite:
    """The engine's run folder, and the host's paths, pids and ports."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.run = folder.parent
        self.facts = facts


Attempt = Callable[[EngineSite], str]
"""Its name says what it tries, its result how it succeeded."""
ATTEMPTS: list[Attempt] = []


def _attempt(function: Attempt) -> Attempt:
    ATTEMPTS.append(function)
    return function


# Reading what belongs to the host, the gateway, other models, and the snapshot.


@_attempt
def read_the_pepper(site: EngineSite) -> str:
    return _read(site.facts["pepper"])


@_attempt
def read_the_credentials(site: EngineSite) -> str:
    return _read(site.facts["credentials"])


@_attempt
def read_the_database(site: EngineSite) -> str:
    return _read(site.facts["database"])


@_attempt
def read_another_model(site: EngineSite) -> str:
    return _read(site.facts["other_model"])


@_attempt
def read_another_snapshot(site: EngineSite) -> str:
    return _read(site.facts["other_snapshot"])


@_attempt
def read_the_memory_file_of_the_snapshot(site: EngineSite) -> str:
    return _read(site.run / "snapshot" / "memory")


@_attempt
def read_the_manifest_of_the_snapshot(site: EngineSite) -> str:
    return _read(site.run / "snapshot" / "manifest.json")


@_attempt
def list_the_snapshot(site: EngineSite) -> str:
    return str(os.listdir(site.run / "snapshot"))


@_attempt
def read_crius_log(site: EngineSite) -> str:
    return _read(site.run / "work" / "dump.log")


@_attempt
def list_crius_folder(site: EngineSite) -> str:
    return str(os.listdir(site.run / "work"))


@_attempt
def read_the_gateways_environment(site: EngineSite) -> str:
    return _read(f"/proc/{site.facts['pid']}/environ")


@_attempt
def read_the_first_processs_environment(site: EngineSite) -> str:
    return _read("/proc/1/environ")


@_attempt
def enter_the_first_processs_root(site: EngineSite) -> str:
    return str(os.listdir("/proc/1/root"))


@_attempt
def see_the_first_process(site: EngineSite) -> str:
    return str(os.stat("/proc/1"))


@_attempt
def read_the_hosts_passwords(site: EngineSite) -> str:
    return _read("/etc/shadow")


@_attempt
def read_the_home_of_root(site: EngineSite) -> str:
    return str(os.listdir("/root"))


@_attempt
def read_kernel_memory(site: EngineSite) -> str:
    return _read("/proc/kcore")


@_attempt
def read_kernel_symbols(site: EngineSite) -> str:
    return _read("/proc/kallsyms")


@_attempt
def read_the_kernels_log(site: EngineSite) -> str:
    return _read("/proc/kmsg")


@_attempt
def read_the_kernels_log_by_call(site: EngineSite) -> str:
    return str(_call("syslog", 3, ctypes.create_string_buffer(64), 64))


@_attempt
def read_keys(site: EngineSite) -> str:
    return _read("/proc/keys")


@_attempt
def read_timers(site: EngineSite) -> str:
    return _read("/proc/timer_list")


@_attempt
def open_a_file_by_handle(site: EngineSite) -> str:
    handle = struct.pack("II8s", 8, 1, (2).to_bytes(8, "little"))
    return str(_call("open_by_handle_at", 3, handle, 0))


# Writing what others will read or run.


@_attempt
def write_the_engines_code(site: EngineSite) -> str:
    return _write(_PACKAGES / "source" / "engines" / "wire.py", "#")


@_attempt
def write_a_package(site: EngineSite) -> str:
    packages = next((_PACKAGES / "environment" / "lib").glob("*/site-packages"))
    return _write(packages / "sitecustomize.py", "#")


@_attempt
def write_the_interpreters_library(site: EngineSite) -> str:
    library = next((_PACKAGES / "python" / "lib").glob("python3*"))
    return _write(library / "os.py", "#")


@_attempt
def write_criu(site: EngineSite) -> str:
    return _write(_PACKAGES / "criu" / "usr" / "sbin" / "criu")


@_attempt
def write_the_models_files(site: EngineSite) -> str:
    return _write(site.run / "model" / "config.json")


@_attempt
def write_an_adapter(site: EngineSite) -> str:
    return _write(site.run / "adapters" / "planted")


@_attempt
def replace_the_adapters_by_a_link(site: EngineSite) -> str:
    os.rename(site.run / "adapters", site.run / "old")
    return "replaced"


@_attempt
def plant_a_link_for_crius_log(site: EngineSite) -> str:
    _symlink("/etc/cron.d/planted", site.run / "work" / "dump.log")
    return "planted"


@_attempt
def plant_a_link_in_its_own_folder(site: EngineSite) -> str:
    _symlink(site.facts["pepper"], site.folder / "planted")
    return "planted"


@_attempt
def write_the_snapshot(site: EngineSite) -> str:
    return _write(site.run / "snapshot" / "manifest.json")


@_attempt
def write_a_cron_job(site: EngineSite) -> str:
    return _write("/etc/cron.d/planted")


@_attempt
def write_a_program_of_the_system(site: EngineSite) -> str:
    return _write("/usr/bin/env")


@_attempt
def write_core_pattern(site: EngineSite) -> str:
    return _write("/proc/sys/kernel/core_pattern", "|/bin/sh")


@_attempt
def write_the_next_pid(site: EngineSite) -> str:
    return _write("/proc/sys/kernel/ns_last_pid", "7")


@_attempt
def trigger_sysrq(site: EngineSite) -> str:
    with open("/proc/sysrq-trigger", "w") as file:
        if os.fstat(file.fileno()).st_rdev == os.makedev(1, 3):  # masked by /dev/null
            raise OSError(errno.ENODEV, "masked")
        file.write("h")
    return "written"


@_attempt
def write_a_control_group(site: EngineSite) -> str:
    return _write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "-1")


# Leaving the root folder and the namespaces.


@_attempt
def mount_a_file_system(site: EngineSite) -> str:
    return str(_call("mount", b"x", str(site.folder).encode(), b"tmpfs", 0, None))


@_attempt
def mount_the_root_writable(site: EngineSite) -> str:
    return str(_call("mount", b"none", b"/", None, 0x1020, None))


@_attempt
def unmount_proc(site: EngineSite) -> str:
    return str(_call("umount2", b"/proc", 2))


@_attempt
def change_attributes_of_a_mount(site: EngineSite) -> str:
    return str(_call("mount_setattr", -100, b"/", 0, struct.pack("QQQQ", 0, 1, 0, 0), 32))


@_attempt
def copy_a_mount(site: EngineSite) -> str:
    return str(_call("open_tree", -100, b"/", 1))


@_attempt
def move_a_mount(site: EngineSite) -> str:
    return str(_call("move_mount", -100, b"/proc", -100, str(site.folder).encode(), 0))


@_attempt
def open_a_file_system(site: EngineSite) -> str:
    return str(_call("fsopen", b"tmpfs", 0))


@_attempt
def pivot_root(site: EngineSite) -> str:
    return str(_call("pivot_root", b".", b"."))


@_attempt
def chroot(site: EngineSite) -> str:
    return str(_call("chroot", str(site.folder).encode()))


@_attempt
def unshare_a_user_namespace(site: EngineSite) -> str:
    return _in_child(lambda: _call("unshare", _CLONE_NEWUSER))


@_attempt
def unshare_a_mount_namespace(site: EngineSite) -> str:
    return _in_child(lambda: _call("unshare", _CLONE_NEWNS))


@_attempt
def clone_into_a_user_namespace(site: EngineSite) -> str:
    pid = _call("clone", _CLONE_NEWUSER | _SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "cloned"


@_attempt
def clone3_into_a_user_namespace(site: EngineSite) -> str:
    arguments = struct.pack("QQQQQQQQ", _CLONE_NEWUSER, 0, 0, 0, _SIGCHLD, 0, 0, 0)
    pid = _call("clone3", arguments, len(arguments))
    if pid == 0:
        os._exit(0)
    return "cloned"


@_attempt
def enter_the_first_processs_namespace(site: EngineSite) -> str:
    descriptor = os.open("/proc/1/ns/mnt", os.O_RDONLY)
    return str(_call("setns", descriptor, 0))


@_attempt
def enter_a_namespace_by_call(site: EngineSite) -> str:
    return str(_call("setns", 0, 0))


# Other processes.


@_attempt
def trace_the_first_process(site: EngineSite) -> str:
    return str(_call("ptrace", _PTRACE_ATTACH, 1, 0, 0))


@_attempt
def be_traced(site: EngineSite) -> str:
    return _in_child(lambda: _call("ptrace", _PTRACE_TRACEME, 0, 0, 0))


@_attempt
def read_the_first_processs_memory(site: EngineSite) -> str:
    buffer = ctypes.create_string_buffer(16)
    vector = struct.pack("PN", ctypes.addressof(buffer), 16)
    return str(_call("process_vm_readv", 1, vector, 1, vector, 1, 0))


@_attempt
def open_the_first_processs_memory(site: EngineSite) -> str:
    return str(os.open("/proc/1/mem", os.O_RDWR))


@_attempt
def take_a_descriptor_of_another_process(site: EngineSite) -> str:
    return str(_call("pidfd_getfd", os.pidfd_open(1), 0, 0))


@_attempt
def compare_processes(site: EngineSite) -> str:
    return str(_call("kcmp", 1, os.getpid(), 0, 0, 0))


@_attempt
def kill_the_first_process(site: EngineSite) -> str:
    os.kill(1, signal.SIGKILL)
    return "sent"


@_attempt
def kill_the_gateway(site: EngineSite) -> str:
    os.kill(site.facts["pid"], signal.SIGTERM)
    return "sent"


@_attempt
def signal_by_descriptor(site: EngineSite) -> str:
    return str(_call("pidfd_send_signal", os.pidfd_open(1), 9, 0, 0))


@_attempt
def limit_the_first_process(site: EngineSite) -> str:
    return str(resource.prlimit(1, resource.RLIMIT_NOFILE, (1, 1)))


@_attempt
def change_the_first_processs_priority(site: EngineSite) -> str:
    os.setpriority(os.PRIO_PROCESS, 1, 19)
    return "set"


# The kernel's less used doors.


@_attempt
def load_a_bpf_program(site: EngineSite) -> str:
    return str(_call("bpf", 5, struct.pack("IIQQ", 1, 1, 0, 0) + bytes(96), 120))


@_attempt
def open_performance_events(site: EngineSite) -> str:
    return str(_call("perf_event_open", struct.pack("II", 1, 120) + bytes(112), 0, -1, -1, 0))


@_attempt
def handle_page_faults(site: EngineSite) -> str:
    return str(_call("userfaultfd", 1))


@_attempt
def set_up_io_uring(site: EngineSite) -> str:
    return str(_call("io_uring_setup", 4, bytes(120)))


@_attempt
def add_a_key(site: EngineSite) -> str:
    return str(_call("add_key", b"user", b"x", b"y", 1, -3))


@_attempt
def use_keys(site: EngineSite) -> str:
    return str(_call("keyctl", 0, -3, 1))


@_attempt
def load_a_module(site: EngineSite) -> str:
    return str(_call("init_module", b"x", 1, b""))


@_attempt
def load_another_kernel(site: EngineSite) -> str:
    return str(_call("kexec_load", 0, 0, None, 0))


@_attempt
def watch_all_files(site: EngineSite) -> str:
    return str(_call("fanotify_init", 0, 0))


@_attempt
def make_a_file_in_memory_a_program(site: EngineSite) -> str:
    return str(_call("memfd_create", b"x", 0))


@_attempt
def change_the_personality(site: EngineSite) -> str:
    return str(_call("personality", 0x0040000))


@_attempt
def account_processes(site: EngineSite) -> str:
    return str(_call("acct", b"/x"))


@_attempt
def set_quotas(site: EngineSite) -> str:
    return str(_call("quotactl", 0x80000200, b"/dev/vda", 0, None))


# What takes authority.


@_attempt
def become_root(site: EngineSite) -> str:
    return _in_child(lambda: os.setuid(0))


@_attempt
def join_a_group(site: EngineSite) -> str:
    return _in_child(lambda: _call("setgroups", 1, struct.pack("I", 0)))


@_attempt
def take_capabilities(site: EngineSite) -> str:
    sets = struct.pack("IIIIII", 0xFFFFFFFF, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return _in_child(lambda: _call("capset", struct.pack("II", 0x20080522, 0), sets))


@_attempt
def gain_authority_by_a_program(site: EngineSite) -> str:
    """su is a program that runs as its owner, root."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        os.execv("/usr/bin/su", ["su", "-c", "true"])
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError(errno.EPERM, "su failed")
    return "done"


@_attempt
def make_a_device(site: EngineSite) -> str:
    path = str(site.folder / "device").encode()
    return str(_call("mknod", path, 0o020600, os.makedev(1, 1)))


@_attempt
def open_the_hosts_disk(site: EngineSite) -> str:
    return str(os.open("/dev/vda", os.O_RDONLY))


@_attempt
def open_physical_memory(site: EngineSite) -> str:
    return str(os.open("/dev/mem", os.O_RDONLY))


@_attempt
def open_a_port_of_the_machine(site: EngineSite) -> str:
    return str(_call("ioperm", 0, 1, 1))


@_attempt
def raise_its_io_privilege(site: EngineSite) -> str:
    return str(_call("iopl", 3))


@_attempt
def set_the_hosts_name(site: EngineSite) -> str:
    return str(_call("sethostname", b"x", 1))


@_attempt
def set_the_clock(site: EngineSite) -> str:
    return str(_call("clock_settime", 0, struct.pack("qq", 0, 0)))


@_attempt
def set_the_time_of_day(site: EngineSite) -> str:
    return str(_call("settimeofday", struct.pack("qq", 0, 0), None))


@_attempt
def reboot(site: EngineSite) -> str:
    return str(_call("reboot", 0xFEE1DEAD, 672274793, 0, None))


@_attempt
def swap_to_a_file(site: EngineSite) -> str:
    return str(_call("swapon", b"/x", 0))


@_attempt
def raise_its_priority(site: EngineSite) -> str:
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    return "raised"


@_attempt
def escape_the_kernels_choice(site: EngineSite) -> str:
    return _write("/proc/self/oom_score_adj", "-1000")


@_attempt
def allow_itself_core_dumps(site: EngineSite) -> str:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError as error:  # as Python says EPERM
        raise OSError(errno.EPERM, str(error)) from error
    return "allowed"


@_attempt
def type_into_a_terminal(site: EngineSite) -> str:
    return str(fcntl.ioctl(0, 0x5412, b"x"))


# Programs of its own.


@_attempt
def run_a_program_of_its_own(site: EngineSite) -> str:
    program = site.folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return _in_child(lambda: os.execv(program, ["program"]))


@_attempt
def map_code_of_its_own(site: EngineSite) -> str:
    library = site.folder / "library"
    library.write_bytes(bytes(4096))
    with (
        library.open("r+b") as file,
        mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    ):
        return "mapped"


# The network.


@_attempt
def connect_to_the_gateway(site: EngineSite) -> str:
    return _connect(socket.AF_INET, ("127.0.0.1", site.facts["port"]))


@_attempt
def connect_to_another_machine(site: EngineSite) -> str:
    return _connect(socket.AF_INET, ("192.0.2.1", 80))


@_attempt
def connect_by_ipv6(site: EngineSite) -> str:
    return _connect(socket.AF_INET6, ("2001:db8::1", 80))


@_attempt
def connect_to_another_engine(site: EngineSite) -> str:
    return _connect(socket.AF_UNIX, site.facts["other_socket"])


@_attempt
def connect_to_an_abstract_socket(site: EngineSite) -> str:
    return _connect(socket.AF_UNIX, "\0" + site.facts["abstract"])


@_attempt
def open_a_raw_socket(site: EngineSite) -> str:
    return _connect(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_RAW)


@_attempt
def open_a_packet_socket(site: EngineSite) -> str:
    return _connect(17, ("lo", 0), socket.SOCK_RAW)


@_attempt
def open_a_socket_to_the_hypervisor(site: EngineSite) -> str:
    return _connect(40, (2, 5001))


@_attempt
def open_a_socket_to_the_kernels_ciphers(site: EngineSite) -> str:
    return _connect(38, ("hash", "sha256"))


# Using up what it shares with others.


@_attempt
def fill_its_folder(site: EngineSite) -> str:
    return _fill(site.folder / "fill", 300)


@_attempt
def fill_shared_memory(site: EngineSite) -> str:
    return _fill(Path("/dev/shm/fill"), 600)


@_attempt
def fill_the_run_folder(site: EngineSite) -> str:
    return _fill(site.run / "fill", 8)


@_attempt
def fill_the_temporary_folder(site: EngineSite) -> str:
    return _fill(Path("/tmp/fill"), 8)


@_attempt
def start_too_many_processes(site: EngineSite) -> str:
    return _in_child(_start_many)


@_attempt
def use_more_memory_than_its_limit(site: EngineSite) -> str:
    return _in_child(lambda: _use_memory(site.facts["memory_bytes"]))


def _fill(path: Path, size_mib: int) -> str:
    block = bytes(_MIB)
    try:
        with path.open("wb") as file:
            for _ in range(size_mib):
                file.write(block)
    finally:
        path.unlink(missing_ok=True)
    return f"{size_mib} MiB written"


def _symlink(target: str, path: Path) -> None:
    os.symlink(target, path)
    path.unlink()


def _use_memory(size_bytes: int) -> None:
    with mmap.mmap(-1, size_bytes + 64 * _MIB) as memory:
        for offset in range(0, len(memory), mmap.PAGESIZE):
            memory[offset] = 1


def _start_many() -> None:
    """Threads, which cost less than processes, as many as there may be, and then a process."""
    threads = []
    ended = threading.Event()
    try:
        while True:
            threads.append(threading.Thread(target=ended.wait, daemon=True))
            threads[-1].start()
    except RuntimeError:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    finally:
        ended.set()
