"""The program of the filter, run by an interpreter of its instructions."""

import errno
import struct

from hypothesis import given
from hypothesis import strategies as st

from coldstart.sandbox import call_filter

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, KILL = 0x7FFF0000, 0x80000000
UNKNOWN, REFUSED = 0x00050000 | errno.ENOSYS, 0x00050000 | errno.EPERM
NUMBERS = call_filter._NUMBERS
SPECIAL = {NUMBERS[name] for name in ("clone", "socket", "ioctl")}


def verdict(number: int, *arguments: int, architecture: int = X86_64) -> int:
    """What the kernel would do, as Documentation/networking/filter.rst says."""
    six = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, architecture, 0, *six)
    code = call_filter.program()
    at = accumulator = 0
    while True:
        operation, if_true, if_false, operand = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x05:
                at += operand
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x45:
                at += if_true if accumulator & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")


def test_exactly_what_is_listed_is_allowed() -> None:
    for number in range(600):
        if number not in SPECIAL:
            expected = ALLOW if number in NUMBERS.values() else UNKNOWN
            assert verdict(number) == expected, number


def test_what_would_harm_the_host_is_not_listed() -> None:
    assert not NUMBERS.keys() & {
        "mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "clone3", "ptrace", "bpf",
        "process_vm_readv", "process_vm_writev", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl",
        "init_module", "kexec_load", "open_by_handle_at", "memfd_create", "execveat", "mknod", "symlink",
        "setuid", "setresuid", "setgroups", "capset", "seccomp", "personality", "pidfd_getfd", "reboot",
    }  # fmt: skip


@given(st.integers(0, (1 << 32) - 1))
def test_no_other_number_is_allowed(number: int) -> None:
    if number not in NUMBERS.values():
        assert verdict(number) == UNKNOWN


@given(st.sampled_from(sorted(NUMBERS.values())), st.integers(0, (1 << 32) - 1))
def test_a_call_of_another_architecture_ends_the_process(number: int, architecture: int) -> None:
    if architecture != X86_64:
        assert verdict(number, architecture=architecture) == KILL


def test_the_calls_of_x32_are_unknown() -> None:
    assert verdict(0x40000000 | NUMBERS["read"]) == UNKNOWN


@given(st.integers(0, (1 << 64) - 1))
def test_clone_makes_no_namespace(flags: int) -> None:
    expected = REFUSED if flags & 0x7E020080 else ALLOW
    assert verdict(NUMBERS["clone"], flags) == expected


def test_threads_may_be_started() -> None:
    assert verdict(NUMBERS["clone"], 0x3D0F00) == ALLOW  # glibc's flags of a thread


@given(st.integers(0, 60))
def test_sockets_of_four_families_are_allowed(family: int) -> None:
    assert verdict(NUMBERS["socket"], family) == (ALLOW if family in (1, 2, 10, 16) else REFUSED)


@given(st.integers(0, 0xFFFF))
def test_terminals_are_not_typed_into(request: int) -> None:
    assert verdict(NUMBERS["ioctl"], 0, request) == (REFUSED if request in (0x5412, 0x541C) else ALLOW)
