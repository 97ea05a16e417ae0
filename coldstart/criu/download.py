"""Fetches CRIU: ``python -m coldstart.criu.download FOLDER``.

Nothing is done where the system's own is new enough, or the folder holds one. Else apt downloads Debian's
package of a newer suite with the libraries that it names, under lists and state of its own, checks their
signatures, and dpkg unpacks them into the folder: nothing of the system changes.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from coldstart.criu.program import Criu, CriuMissing, find

_SUITES = ("forky", "sid")
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCES = Path("/etc/apt")
_TIMEOUT_S = 300.0


def fetch(folder: Path) -> Criu:
    """The CRIU that is there, or has been fetched into the folder. Raises `CriuMissing`."""
    try:
        return find(folder)
    except CriuMissing:
        pass
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise CriuMissing(f"there is no {tool} to fetch CRIU with: install CRIU 4.2 or newer")
    if not _KEYS.is_file():
        raise CriuMissing(f"{_KEYS} is missing: apt-get install debian-archive-keyring")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".criu-", dir=folder.parent) as scratch:
        reasons = []
        for suite in _SUITES:
            try:
                unpacked = _download(Path(scratch) / suite, suite)
                find(unpacked)
            except CriuMissing as error:
                reasons.append(f"{suite}: {error}")
                continue
            if folder.exists():
                shutil.rmtree(folder)
            unpacked.rename(folder)
            return find(folder)
    raise CriuMissing("; ".join(reasons))


def _download(scratch: Path, suite: str) -> Path:
    """Download and unpack the suite's CRIU. The folder that it was unpacked into."""
    for name in ("state/lists/partial", "cache/archives/partial", "sources", "root"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "sources" / "suite.sources").write_text(
        f"Types: deb\nURIs: {_mirror()}\nSuites: {suite}\nComponents: main\nSigned-By: {_KEYS}\n"
    )
    options = {
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": scratch / "sources",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    _run([*apt, "update"])
    _run([*apt, "install", "--yes", "--no-install-recommends", "--download-only", "criu"])
    packages = sorted((scratch / "cache" / "archives").glob("*.deb"))
    for package in packages:
        _run(["dpkg", "-x", str(package), str(scratch / "root")])
    return scratch / "root"


def _mirror() -> str:
    """The first mirror of Debian itself that the system's own sources name."""
    places = [_SOURCES / "sources.list", *sorted((_SOURCES / "sources.list.d").glob("*"))]
    for path in places:
        if not path.is_file():
            continue
        for line in path.read_text(errors="replace").splitlines():
            match = re.match(r"(?:URIs:\s*|deb\s+(?:\[[^]]*\]\s*)?)(\S+/debian)/?(?:\s|$)", line)
            if match:
                return match[1]
    raise CriuMissing("the system's sources name no mirror of Debian: install CRIU 4.2 or newer yourself")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - apt-get and dpkg
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CriuMissing(f"{command[0]} took longer than {_TIMEOUT_S:g} s") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise CriuMissing(f"{command[0]}: {words[-1] if words else done.returncode}")


def main() -> None:
    """Print the path and version of CRIU; end with exit code 1 if there is none."""
    try:
        criu = fetch(Path(sys.argv[1]).absolute())
    except CriuMissing as error:
        sys.exit(f"CRIU: {error} (without it there are no snapshots)")
    print(f"CRIU: {criu.identity}")


if __name__ == "__main__":
    main()
