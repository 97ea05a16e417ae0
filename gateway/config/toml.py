"""A TOML document together with the lines that its keys stand on, which ``tomllib`` does not tell."""

import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, get_args, get_origin

_NAMES: Mapping[type[Any], str] = types.MappingProxyType(
    {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        Path: "a path",
        date: "a date, such as 2026-01-31 without quotes",
    }
)


def convert(hint: Any, value: Any, base: Path) -> Any:
    """The TOML value as the hinted type; raises ValueError naming what was wanted."""
    hint = without_none(hint)
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"must be an array of strings, not {value!r}")
        return tuple(value)
    if hint is Decimal:
        return _decimal(value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _choice(hint, value)
    if hint is Path and isinstance(value, str):
        return (base / value).resolve()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"must be {_NAMES[hint]}, not {value!r}")
    return value


def from_text(hint: Any, text: str, base: Path) -> Any:
    """The value of an environment variable as the hinted type."""
    hint = without_none(hint)
    if get_origin(hint) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"must be true or false, not {text!r}")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"must be {_NAMES[hint]}, not {text!r}") from None
    return convert(hint, text, base)


def without_none(hint: Any) -> Any:
    """The type of a value that may also be missing."""
    if get_origin(hint) is types.UnionType:
        return next(option for option in get_args(hint) if option is not type(None))
    return hint


def _choice(hint: type[StrEnum], value: Any) -> StrEnum:
    try:
        return hint(value)
    except ValueError:
        raise ValueError(f"must be one of {', '.join(hint)}, not {value!r}") from None


def _decimal(value: Any) -> Decimal:
    """From a string only: a number of TOML is a binary fraction, which most prices are not."""
    try:
        return Decimal(value if isinstance(value, str) else "no text")
    except InvalidOperation:
        raise ValueError(f'must be a decimal number in quotes, such as "0.15", not {value!r}') from None


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
        """Read a TOML file. Raises OSError, or ValueError with the parser's words and position."""
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
