"""A TOML document together with the lines that its keys stand on, which ``tomllib`` does not tell."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_TABLE = re.compile(r"\s*\[\[?\s*([A-Za-z0-9_.\-\"]+)\s*\]\]?")
_KEY = re.compile(r"\s*\"?([A-Za-z0-9_-]+)\"?\s*=")


@dataclass(frozen=True, slots=True)
class TomlSource:
    """The parsed document, and ``(table, occurrence, key) -> line`` counted from 1.

    The occurrence of a table within a table of an array, ``[models.lora]``, is the latter's.
    """

    document: dict[str, Any]
    lines: dict[tuple[str, int, str | None], int]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises OSError, or ValueError with the parser's own words and place."""
        text = path.read_bytes().decode()
        return cls(tomllib.loads(text), _lines(text))

    def line(self, table: str, key: str | None, occurrence: int = 0) -> int | None:
        """The line of the key, or of its table's head where the key is not there."""
        return self.lines.get((table, occurrence, key)) or self.lines.get((table, occurrence, None))


def _lines(text: str) -> dict[tuple[str, int, str | None], int]:
    """Where tables and keys stand. A look-alike inside a multi-line string can only misplace a message."""
    lines: dict[tuple[str, int, str | None], int] = {}
    table, occurrence = "", 0
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if head := _TABLE.match(line):
            table = head[1].strip('"')
            parent = table.rpartition(".")[0]
            occurrence = seen[parent] - 1 if parent in seen else seen.get(table, 0)
            seen[table] = seen.get(table, 0) + 1
            lines.setdefault((table, occurrence, None), number)
        elif key := _KEY.match(line):
            lines.setdefault((table, occurrence, key[1]), number)
    return lines
