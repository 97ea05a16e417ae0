"""What a snapshot was taken on, and whether that still holds.

A snapshot is valid only for exactly what it was taken on. After a difference it is taken again; there is no
crash. Digesting a gigabyte takes a tenth of a second, which a wake cannot afford: a wake compares the
identity of each file (inode, size, mtime, ctime), and digests those whose identity has changed.
"""

import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import msgspec
from blake3 import blake3

FORMAT = 4
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CPU = Path("/proc/cpuinfo")


class StaleSnapshot(Exception):
    """The snapshot must not be used. The message says what differs."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file as it was digested: its digest (BLAKE3, hex) and what changes when its content does."""

    digest: str
    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Digest the file. Raises OSError."""
        status = path.stat()
        return cls(_digest(path), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)

    def unchanged(self, status: os.stat_result) -> bool:
        return (self.size, self.inode, self.mtime_ns, self.ctime_ns) == (
            status.st_size,
            status.st_ino,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )


def _digest(path: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of ``manifest.json``.

    ``taken_on``: flat facts about the machine, the versions and the engine. ``files``: the snapshot's own, by
    their path in its folder. ``sources``: those of the folder ``source`` (the weights), likewise. ``canary``
    belongs to those who wrote it. ``memory_bytes``: what a restored tree used. ``monotonic_s``:
    CLOCK_MONOTONIC at the dump, which no later moment of the same boot is below. ``ms``: how long each phase
    of its making took.
    """

    model_id: str
    created_at: float
    taken_on: Mapping[str, str]
    main_pid: int
    pipe: int
    monotonic_s: float
    memory_bytes: int = 0
    files: Mapping[str, FileIdentity] = field(default_factory=dict)
    source: str | None = None
    sources: Mapping[str, FileIdentity] = field(default_factory=dict)
    canary: Mapping[str, Any] | None = None
    ms: Mapping[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it, mode 0600."""
        manifest = msgspec.json.encode(self)
        whole = _Envelope(FORMAT, blake3(manifest).hexdigest(), msgspec.Raw(manifest))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(msgspec.json.encode(whole))
            out.flush()
            os.fsync(out.fileno())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest. Raises `StaleSnapshot` if it cannot be read or was changed."""
        try:
            written = path.read_bytes()
            if msgspec.json.decode(written, type=_Format).format != FORMAT:
                raise StaleSnapshot("it was written by another version of Torpor")
            whole = msgspec.json.decode(written, type=_Envelope)
            if blake3(whole.manifest).hexdigest() != whole.digest:
                raise StaleSnapshot("the content of its manifest has changed")
            return msgspec.json.decode(whole.manifest, type=cls)
        except OSError as error:
            raise StaleSnapshot(f"its manifest cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise StaleSnapshot(f"its manifest is damaged: {type(error).__name__}") from error

    def require(self, now: Mapping[str, str], monotonic_s: float) -> None:
        """Check that the snapshot was taken on this host and in this boot; raise `StaleSnapshot` if not."""
        for name in sorted(self.taken_on.keys() | now.keys()):
            then, current = self.taken_on.get(name), now.get(name)
            if then != current:
                raise StaleSnapshot(f"{name} has changed: {_short(then)} then, {_short(current)} now")
        if monotonic_s < self.monotonic_s:
            raise StaleSnapshot("the clock has started again: it was taken in an earlier boot")


class _Format(msgspec.Struct):
    format: int


class _Envelope(msgspec.Struct):
    """The file: the digest (BLAKE3, hex) is of the manifest's bytes."""

    format: int
    digest: str
    manifest: msgspec.Raw


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= 80 else f"{value[:77]}..."


class FileCheck:
    """Whether files still hold what was digested. Remembers the identities that were found good."""

    def __init__(self) -> None:
        self._good: dict[Path, FileIdentity] = {}

    def require(self, files: Mapping[Path, FileIdentity], *, digest: bool) -> None:
        """Check files; raise `StaleSnapshot` for a change.

        ``digest``: read all of them, not only those whose identity has changed.
        """
        for path, recorded in files.items():
            expected = self._good.get(path, recorded)
            try:
                status = path.stat()
                if not digest and expected.digest == recorded.digest and expected.unchanged(status):
                    continue
                if status.st_size != recorded.size:
                    raise StaleSnapshot(f"{path.name} has {status.st_size} bytes and had {recorded.size}")
                current = FileIdentity.of(path)
            except OSError as error:
                raise StaleSnapshot(f"{path.name} cannot be read: {error.strerror}") from error
            if current.digest != recorded.digest:
                raise StaleSnapshot(f"the content of {path.name} has changed")
            self._good[path] = current


def identities(folder: Path, *, leave_out: Iterable[str] = ()) -> dict[str, FileIdentity]:
    """Every file below the folder, by its path in it; a link to a file is that file. Raises OSError."""
    left_out = frozenset(leave_out)
    return {
        name: FileIdentity.of(folder / name) for name in sorted(file_names(folder)) if name not in left_out
    }


def file_names(folder: Path) -> frozenset[str]:
    """The relative paths of all files below the folder, links to files included."""
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@cache
def machine() -> Mapping[str, str]:
    """The facts about this machine that an image of memory depends on."""
    keys = {"vendor_id", "model name", "flags"}
    facts = {
        "kernel": platform.release(),
        "boot": _BOOT_ID.read_text().strip(),
        "python": platform.python_version(),
    }
    for line in _CPU.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in keys:
            facts[f"cpu {name.strip()}"] = value.strip()
        if not line.strip():
            break
    flags = facts.pop("cpu flags", "")
    facts["cpu flags"] = blake3(" ".join(sorted(flags.split())).encode()).hexdigest()[:16]
    return facts


def monotonic_s() -> float:
    """CLOCK_MONOTONIC, which a boot starts from zero."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
