"""Tables of a TOML file into dataclasses, and where in the file a fault is."""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from gateway.config.toml import TomlSource, convert, from_text, without_none

DOCUMENT = "docs/reference/configuration.md"

Wanted = Mapping[str, Collection[str]]
"""Keys by section."""


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line that says where and what."""


@dataclass(frozen=True, slots=True)
class _Override:
    variable: str
    text: str


Tables = dict[str, dict[str, Any]]


def all_tables(document: Mapping[str, Any], environment: Mapping[str, str], names: Collection[str]) -> Tables:
    """The tables but the arrays of tables, with what the environment overrides."""
    tables: Tables = {name: dict(document.get(name, {})) for name in names}
    for section, key, variable, text in _overrides(environment):
        if section not in tables:
            raise ConfigError(f"{variable}: there is no section [{section}] ({DOCUMENT})")
        tables[section][key] = _Override(variable, text)
    return tables


def some_tables(
    document: Mapping[str, Any], environment: Mapping[str, str], names: Collection[str], only: Wanted
) -> Tables:
    """As `all_tables`, with the wanted keys alone."""
    tables: Tables = {name: {} for name in names}
    for section, keys in only.items():
        table = document.get(section)
        if isinstance(table, dict):
            tables[section] = {key: value for key, value in table.items() if key in keys}
    for section, key, variable, text in _overrides(environment):
        if key in only.get(section, ()):
            tables[section][key] = _Override(variable, text)
    return tables


def read_source(path: Path) -> TomlSource:
    try:
        return TomlSource.read(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `torpor setup` writes one") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _overrides(environment: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    overrides = []
    for name, value in sorted(environment.items()):
        if name == "TORPOR_PORT":
            overrides.append(("server", "port", name, value))
        elif name.startswith("TORPOR_") and "__" in name:
            section, _, key = name.removeprefix("TORPOR_").lower().partition("__")
            overrides.append((section, key, name, value))
    return overrides


class Loader:
    """Turns tables into dataclasses, and says where a fault is. ``arrays`` are the sections with many."""

    def __init__(
        self, path: Path, source: TomlSource, sections: Collection[str], arrays: Collection[str]
    ) -> None:
        self._path = path
        self._source = source
        self._sections = sections
        self._arrays = arrays

    def fault(self, section: str, key: str | None, what: str, index: int = 0) -> ConfigError:
        line = self._source.line(section, key, index)
        table = f"[[{section}]]" if section in self._arrays else f"[{section}]"
        where = f"{self._path}:{line}" if line else str(self._path)
        subject = f"{table} {key}" if key else table
        return ConfigError(f"{where}: {subject}: {what} (see {DOCUMENT}#{section})")

    def check_sections(self, document: Mapping[str, Any]) -> None:
        for name, value in document.items():
            if name not in self._sections:
                hint = _hint(name, self._sections)
                line = self._source.line(name, None) or self._source.line("", name)
                where = f"{self._path}:{line}" if line else str(self._path)
                raise ConfigError(f"{where}: {name}: unknown section{hint} (see {DOCUMENT})")
            kind = list if name in self._arrays else dict
            if not isinstance(value, kind):
                form = f"an array of tables, [[{name}]]" if name in self._arrays else f"a table, [{name}]"
                raise self.fault(name, None, f"must be {form}")

    def table(self, kind: type[Any], section: str, values: Any, index: int = 0) -> Any:
        if not isinstance(values, dict):
            raise self.fault(section, None, "must be a table", index)
        hints = get_type_hints(kind)
        known_fields = {item.name: item for item in fields(kind)}
        result = {}
        for key, value in values.items():
            if key not in known_fields:
                variable = f"{value.variable}: " if isinstance(value, _Override) else ""
                fault = self.fault(section, key, f"unknown key{_hint(key, known_fields)}", index)
                raise ConfigError(f"{variable}{fault}")
            result[key] = self._value(section, key, hints[key], value, index)
        for item in known_fields.values():
            required = item.default is MISSING and item.default_factory is MISSING
            if required and item.name not in result:
                raise self.fault(section, item.name, "is required", index)
            if isinstance(item.default, Path) and item.name not in result:
                result[item.name] = self._path.resolve().parent / item.default
        return kind(**result)

    def array(self, kind: type[Any], section: str, document: Mapping[str, Any]) -> Any:
        tables = enumerate(document.get(section, []))
        return tuple(self.table(kind, section, table, index) for index, table in tables)

    def _value(self, section: str, key: str, hint: Any, value: Any, index: int) -> Any:
        nested = without_none(hint)
        if isinstance(nested, type) and is_dataclass(nested):
            return self.table(nested, f"{section}.{key}", value, index)
        try:
            if isinstance(value, _Override):
                return from_text(hint, value.text, Path.cwd())
            return convert(hint, value, self._path.resolve().parent)
        except ValueError as error:
            if isinstance(value, _Override):
                raise ConfigError(f"{value.variable}: {error} (see {DOCUMENT}#{section})") from None
            raise self.fault(section, key, str(error), index) from None


def _hint(name: str, names: Collection[str]) -> str:
    close = get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""
