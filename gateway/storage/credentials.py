"""``credentials.env``: the demo organization's keys and the gateway's address, as lines for a shell."""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gateway.storage.data_directory import replace_private

BASE_URL = "TORPOR_BASE_URL"
_LINE = re.compile(r"^export ([A-Za-z_][A-Za-z0-9_]*)=(.*)$", re.MULTILINE)


class CredentialsFile:
    """``export KEY=value`` lines, mode 0600. Every change replaces the file whole.

    Changes of several processes come one after the other, under a lock on the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, str]:
        """The values by name; empty if the file is missing."""
        return dict(_LINE.findall(self._text()))

    def write(self, values: Mapping[str, str]) -> None:
        """Replace the file."""
        with self._locked():
            replace_private(self.path, "".join(f"export {name}={value}\n" for name, value in values.items()))

    def change(self, name: str, value: str) -> bool:
        """Give a variable that the file has another value. Returns whether the file changed."""
        with self._locked():
            return self._change(name, value)

    def follow(self, base_url: str) -> bool:
        """Give the address of the gateway. Returns whether the file changed; a missing one is not made."""
        with self._locked():
            text = self._text()
            if not text or BASE_URL in dict(_LINE.findall(text)):
                return self._change(BASE_URL, base_url)
            replace_private(self.path, f"export {BASE_URL}={base_url}\n{text}")
            return True

    def _change(self, name: str, value: str) -> bool:
        """What else is in the file stays, comments included."""
        text = self._text()
        line = re.compile(rf"^export {re.escape(name)}=.*$", re.MULTILINE)
        changed = line.sub(lambda _: f"export {name}={value}", text)
        if changed == text:
            return False
        replace_private(self.path, changed)
        return True

    def _text(self) -> str:
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return ""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
