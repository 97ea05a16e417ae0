"""What archives of adapters have in common: which of their files are wanted, and how much may be unpacked."""

from collections.abc import Iterator
from pathlib import Path

from gateway.adapters.errors import InvalidAdapter, shown
from gateway.adapters.validation import CONFIG, WEIGHTS

MAX_MEMBERS = 64
WANTED = (WEIGHTS, CONFIG)


class Unpacking:
    """Takes the two wanted files out of an archive, by the names that it gives them and under our own.

    No name of the archive becomes a path. The two must lie in one folder of it; other files are passed over,
    but count for ``most_bytes`` too, since they are unpacked.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._left = most_bytes
        self._members = 0
        self._parents: dict[str, str] = {}

    def take(self, name: str, pieces: Iterator[bytes]) -> None:
        """A regular file of the archive, with its content."""
        self.count(name)
        parent, _, last = _checked(name).rpartition("/")
        if last not in WANTED:
            for piece in pieces:
                self.unpacked(len(piece))
            return
        if last in self._parents:
            raise InvalidAdapter(f"The archive holds more than one {last}.")
        self._parents[last] = parent
        with (self._folder / last).open("xb") as file:
            for piece in pieces:
                self.unpacked(len(piece))
                file.write(piece)

    def count(self, name: str) -> None:
        """An entry of the archive, of whatever kind."""
        _checked(name)
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise InvalidAdapter(f"The archive has more than {MAX_MEMBERS} entries.")

    def unpacked(self, size: int) -> None:
        """Count unpacked bytes."""
        self._left -= size
        if self._left < 0:
            raise InvalidAdapter(f"The archive unpacks to more than {self._most_bytes} bytes.")

    def end(self) -> None:
        """Check that both files were in the archive; raise `InvalidAdapter` if not."""
        for name in WANTED:
            if name not in self._parents:
                raise InvalidAdapter(f"The archive holds no {name}.")
        if len(set(self._parents.values())) > 1:
            raise InvalidAdapter(f"The archive holds {' and '.join(WANTED)} in different folders.")


def _checked(name: str) -> str:
    """The name, without a leading ``./``; raises where it would lead out of a folder."""
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts:
        raise InvalidAdapter(f"The archive has an entry with the path {shown(name)}, which leads out of it.")
    return "/".join(part for part in parts if part not in ("", "."))


def refuse_kind(name: str, what: str) -> InvalidAdapter:
    """For an entry that is neither a regular file nor a folder."""
    return InvalidAdapter(f"The archive's entry {shown(name)} is {what}; only regular files are taken.")
