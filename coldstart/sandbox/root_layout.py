"""What the root folder of a sandbox holds beside a /proc, /dev, /tmp and /run of its own."""

import glob
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

_SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What the dynamic loader and the C library read; nothing that names the host or its users.
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")
# vLLM runs lscpu.
_HARDWARE = ("/sys/devices/system/cpu", "/sys/devices/system/node")


@dataclass(frozen=True, slots=True)
class RootLayout:
    """Files and folders of the host by their path in the sandbox, all read-only.

    ``links`` and ``files`` are made in the sandbox: the text of a symbolic link or of a file by its path.
    ``devices``: device files of the host, which have the same path in the sandbox.
    """

    binds: Mapping[Path, Path]
    links: Mapping[Path, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    devices: tuple[Path, ...] = ()

    def description(self, enter: Iterable[Path] = ()) -> bytes:
        """The line that ``coldstart/sandbox/init.py`` reads; ``enter``: files of control groups."""
        description = {
            "enter": [str(path) for path in enter],
            "binds": [[str(source), str(target)] for target, source in self.binds.items()],
            "devices": [str(path) for path in self.devices],
            "links": [[text, str(target)] for target, text in self.links.items()],
            "files": [[text, str(target)] for target, text in self.files.items()],
        }
        return json.dumps(description).encode() + b"\n"

    def with_binds(self, binds: Mapping[Path, Path]) -> "RootLayout":
        """A layout that shows more of the host: sources by target."""
        return replace(self, binds={**self.binds, **binds})

    def inside(self, path: Path) -> Path | None:
        """Where the sandbox sees a file of the host; None if it does not."""
        return _moved(path, ((source, target) for target, source in self.binds.items()))

    def outside(self, path: Path) -> Path | None:
        """The file of the host that the sandbox sees at a path; None if it is none of the host's."""
        return _moved(path, self.binds.items())


def _moved(path: Path, pairs: Iterable[tuple[Path, Path]]) -> Path | None:
    """The path with the longest beginning that has a counterpart replaced by it."""
    fitting = [pair for pair in pairs if path.is_relative_to(pair[0])]
    if not fitting:
        return None
    beginning, counterpart = max(fitting, key=lambda pair: len(pair[0].parts))
    return counterpart / path.relative_to(beginning)


def system_layout(*, gpu: bool = False) -> RootLayout:
    """The system's programs and libraries, and what tells of the processors.

    ``gpu``: the devices of NVIDIA's driver and all of /sys as well. This was not tried on a machine with one.
    """
    binds = {Path("/usr"): Path("/usr")}
    links = {}
    for name in _SYSTEM_FOLDERS:
        folder = Path("/", name)
        if folder.is_symlink():
            links[folder] = os.readlink(folder)
        elif folder.is_dir():
            binds[folder] = folder
    for path in map(Path, (*_SYSTEM_FILES, *(("/sys",) if gpu else _HARDWARE))):
        if path.exists():
            binds[path] = path
    devices = sorted(map(Path, glob.glob("/dev/nvidia*"))) if gpu else ()
    return RootLayout(binds, links, devices=tuple(path for path in devices if path.is_char_device()))
