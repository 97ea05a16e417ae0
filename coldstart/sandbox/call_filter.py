"""The system calls that an engine may make, as a seccomp program.

An allow-list: what it does not name is answered with ENOSYS, as by a kernel that does not know the call, so
libraries use another way (glibc: clone instead of clone3, whose flags a filter cannot read). It was
assembled by tracing vLLM on a CPU from its start to its sleep, LoRA adapters included; about as many calls
more are the usual ones of the C library and of Python. An engine on a GPU makes others: it has no filter.

The program is a balanced tree over the numbers of the calls, about eight comparisons for each call. Sources:
seccomp(2), the kernel's ``Documentation/userspace-api/seccomp_filter.rst`` and ``uapi/linux/filter.h``; the
numbers of x86-64 are those of ``asm/unistd_64.h``.
"""

import errno
import hashlib
import struct
from functools import cache

_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_CALLS = 0x40000000
# struct seccomp_data: the number, the architecture, the instruction pointer, six arguments of 64 bits.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# Codes of struct sock_filter: load a word, jump, jump if equal / at least / a bit is set, return.
_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_UNKNOWN, _REFUSED = _ERRNO | errno.ENOSYS, _ERRNO | errno.EPERM
_FARTHEST = 255

# Namespaces: CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET and TIME.
_CLONE_NAMESPACES = 0x7E020080
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

# fmt: off
_NUMBERS = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7,
    "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28,
    "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39, "sendfile": 40, "socket": 41, "connect": 42,
    "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "shutdown": 48, "bind": 49,
    "listen": 50, "getsockname": 51, "getpeername": 52, "socketpair": 53, "setsockopt": 54,
    "getsockopt": 55, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "exit": 60, "wait4": 61,
    "kill": 62, "uname": 63, "fcntl": 72, "flock": 73, "fsync": 74, "fdatasync": 75, "ftruncate": 77,
    "getdents": 78, "getcwd": 79, "chdir": 80, "fchdir": 81, "rename": 82, "mkdir": 83, "rmdir": 84,
    "link": 86, "unlink": 87, "readlink": 89, "chmod": 90, "fchmod": 91, "umask": 95, "gettimeofday": 96,
    "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "setsid": 112, "getgroups": 115,
    "getresuid": 118, "getresgid": 120, "getpgid": 121, "getsid": 124, "rt_sigpending": 127,
    "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "sigaltstack": 131, "statfs": 137, "fstatfs": 138,
    "getpriority": 140, "setpriority": 141, "sched_getparam": 143, "sched_setscheduler": 144,
    "sched_getscheduler": 145, "sched_get_priority_max": 146, "sched_get_priority_min": 147, "prctl": 157,
    "arch_prctl": 158, "gettid": 186, "getxattr": 191, "lgetxattr": 192, "fgetxattr": 193,
    "listxattr": 194, "llistxattr": 195, "flistxattr": 196, "futex": 202, "sched_setaffinity": 203,
    "sched_getaffinity": 204, "epoll_create": 213, "getdents64": 217, "set_tid_address": 218,
    "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234,
    "mbind": 237, "set_mempolicy": 238, "get_mempolicy": 239, "waitid": 247, "migrate_pages": 256,
    "openat": 257, "mkdirat": 258, "newfstatat": 262, "unlinkat": 263, "renameat": 264, "linkat": 265,
    "readlinkat": 267, "fchmodat": 268, "faccessat": 269, "pselect6": 270, "ppoll": 271,
    "set_robust_list": 273, "get_robust_list": 274, "utimensat": 280, "epoll_pwait": 281,
    "timerfd_create": 283, "eventfd": 284, "fallocate": 285, "timerfd_settime": 286,
    "timerfd_gettime": 287, "accept4": 288, "eventfd2": 290, "epoll_create1": 291, "dup3": 292,
    "pipe2": 293, "preadv": 295, "pwritev": 296, "recvmmsg": 299, "prlimit64": 302, "sendmmsg": 307,
    "getcpu": 309, "renameat2": 316, "getrandom": 318, "membarrier": 324, "copy_file_range": 326,
    "preadv2": 327, "pwritev2": 328, "statx": 332, "rseq": 334, "pidfd_open": 434, "close_range": 436,
    "faccessat2": 439, "fchmodat2": 452,
}
# fmt: on

Instruction = tuple[int, int, int, int]
"""The code, the jumps if true and if false, and the operand of a ``struct sock_filter``."""


@cache
def program() -> bytes:
    """The filter, an array of ``struct sock_filter`` (8 bytes each)."""
    special = {
        _NUMBERS["clone"]: _clone(),
        _NUMBERS["socket"]: _one_of(0, _FAMILIES, allowed=True),
        _NUMBERS["ioctl"]: _one_of(1, _TERMINAL_INPUT, allowed=False),
    }
    regions = _regions(frozenset(_NUMBERS.values()), special)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32_CALLS),
        (_RETURN, 0, 0, _UNKNOWN),
        *_tree(regions),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def digest() -> str:
    """The SHA-256 of the filter, in hexadecimal: a snapshot's processes keep the one that they had."""
    return hashlib.sha256(program()).hexdigest()


def _return(verdict: int) -> list[Instruction]:
    return [(_RETURN, 0, 0, verdict)]


def _clone() -> list[Instruction]:
    return [
        (_LOAD, 0, 0, _ARGUMENTS),
        (_ANY_BIT, 0, 1, _CLONE_NAMESPACES),
        (_RETURN, 0, 0, _REFUSED),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _one_of(argument: int, values: tuple[int, ...], *, allowed: bool) -> list[Instruction]:
    """Whether the low half of an argument is one of the values, which are allowed, or refused."""
    listed, others = (_ALLOW, _REFUSED) if allowed else (_REFUSED, _ALLOW)
    comparisons = [
        (_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)
    ]  # a match jumps over the comparisons that are left and the verdict on the others
    return [
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        *comparisons,
        (_RETURN, 0, 0, others),
        (_RETURN, 0, 0, listed),
    ]


def _regions(
    numbers: frozenset[int], special: dict[int, list[Instruction]]
) -> list[tuple[int, list[Instruction]]]:
    """The first number of each run of calls with the same verdict, and the code for that verdict."""
    regions: list[tuple[int, list[Instruction]]] = []
    for number in range(max(numbers) + 2):
        verdict = special.get(number) or _return(_ALLOW if number in numbers else _UNKNOWN)
        if not regions or regions[-1][1] != verdict:
            regions.append((number, verdict))
    return regions


def _tree(regions: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    if len(regions) == 1:
        return regions[0][1]
    middle = len(regions) // 2
    lower, upper = _tree(regions[:middle]), _tree(regions[middle:])
    first = regions[middle][0]
    if len(lower) <= _FARTHEST:
        return [(_AT_LEAST, len(lower), 0, first), *lower, *upper]
    return [(_AT_LEAST, 0, 1, first), (_JUMP, 0, 0, len(lower)), *lower, *upper]
