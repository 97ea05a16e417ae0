"""CRIU: which one there is, whether it works here, and its command lines.

Version 4.2 is the least: 3.17 does not know the vdso of new kernels, 4.1 cannot dump listening sockets there.
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

LEAST_VERSION = (4, 2)
# Its own loader runs it: the libraries beside it are newer than the system's.
_PRIVATE_CRIU = Path("usr/sbin/criu")
_PRIVATE_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
_LOADER = "ld-linux-x86-64.so.2"
_TIMEOUT_S = 20.0
DUMP_LOG, RESTORE_LOG = "dump.log", "restore.log"
PROBE_CACHE = Path("/run/criu.kdat")
"""Where CRIU keeps what it found out about the kernel, on a tmpfs only. A sandbox's /run is one."""
# What a tree of an engine needs, at the dump and at the restore. Connections are within the sandbox, whose
# network that no other process has: there is nothing to lock.
_COMMON = ("--ext-unix-sk", "--tcp-established", "--link-remap", "--file-locks", "--network-lock", "skip")


class CriuMissing(Exception):
    """There is no usable CRIU. The message says why."""


@dataclass(frozen=True, slots=True)
class Criu:
    """A CRIU that can be run: the words that its command lines begin with, and its version as it says it.

    ``files``: what is loaded when it is run. ``digest``: the SHA-256 of the program, in hexadecimal.
    ``folder``: where it was unpacked; None for the system's.
    """

    argv: tuple[str, ...]
    version: str
    files: tuple[Path, ...] = ()
    digest: str = ""
    folder: Path | None = None

    @property
    def identity(self) -> str:
        """The version and the digest: a snapshot is restored by the program that made it."""
        return f"{self.version} sha256:{self.digest}"

    def moved(self, inside: Callable[[Path], Path | None]) -> "Criu":
        """The same program for a sandbox; ``inside``: where this sees a path of the host, or None."""
        paths = (inside(Path(word)) if word.startswith("/") else None for word in self.argv)
        argv = tuple(str(path or word) for path, word in zip(paths, self.argv, strict=True))
        return replace(self, argv=argv)

    def check_command(self) -> list[str]:
        """Find out about the kernel, and whether filters of system calls can be dumped.

        The whole of ``criu check`` asks for terminals and tunnels, which an engine's sandbox does not have.
        """
        return [*self.argv, "check", "--feature", "seccomp_filters"]

    def dump_command(self, pid: int, images: Path, work: Path, script: Path) -> list[str]:
        """Dump the tree of ``pid`` and let it run on; ``script`` is called at each stage.

        Logs and statistics go to the folder ``work``.
        """
        return [
            *self.argv, "dump", "--tree", str(pid), "--images-dir", str(images), "--work-dir", str(work),
            "--leave-running", *_COMMON,
            "--action-script", str(script), "-v1", "--log-file", DUMP_LOG,
        ]  # fmt: skip

    def restore_command(self, images: Path, work: Path, pipe: int) -> list[str]:
        """Restore a tree. Its end of the pipe with inode ``pipe`` becomes this command's standard output."""
        return [
            *self.argv, "restore", "--images-dir", str(images), "--work-dir", str(work),
            "--restore-detached", *_COMMON,
            "--inherit-fd", f"fd[1]:pipe:[{pipe}]", "--file-validation", "filesize",
            "-v1", "--log-file", RESTORE_LOG,
        ]  # fmt: skip


def find(private: Path | None) -> Criu:
    """The system's CRIU where it is new enough, else the one unpacked in the folder ``private``.

    Raises `CriuMissing`.
    """
    reasons = []
    private = private and private.resolve()
    system = shutil.which("criu", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    candidates: list[tuple[str, Sequence[str], Path | None]] = []
    if system:
        candidates.append(("the system's", [system], None))
    if private is not None and (private / _PRIVATE_CRIU).is_file():
        libraries = private / _PRIVATE_LIBRARIES
        words = [libraries / _LOADER, "--library-path", libraries, private / _PRIVATE_CRIU]
        candidates.append(("the unpacked", [str(word) for word in words], private))
    for name, argv, folder in candidates:
        version = _version(argv)
        if version is None:
            reasons.append(f"{name} CRIU cannot be run")
        elif _numbers(version) < LEAST_VERSION:
            reasons.append(f"{name} CRIU is {version}, older than 4.2")
        else:
            digest = hashlib.sha256(Path(argv[-1]).read_bytes()).hexdigest()
            return Criu(tuple(argv), version, _files(argv), digest, folder)
    raise CriuMissing("; ".join(reasons) or "there is no CRIU")


def _files(argv: Sequence[str]) -> tuple[Path, ...]:
    """The program and its libraries, as the dynamic loader tells them (ld.so(8))."""
    done = subprocess.run(  # noqa: S603 - a CRIU that was found
        argv,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        env={"LD_TRACE_LOADED_OBJECTS": "1"},
    )
    libraries = re.findall(r"=> (/\S+) ", done.stdout)
    return tuple(Path(word) for word in (*argv, *libraries) if Path(word).is_file())


def _version(argv: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - a CRIU that was found
            [*argv, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^Version: (\d[\w.]*)", done.stdout, re.MULTILINE)
    return match[1] if match else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
