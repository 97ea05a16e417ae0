"""The configuration: one TOML file into frozen dataclasses, overridable by environment.

``docs/configuration.md`` documents every key; a test holds it to that.
"""

import os
import re
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from engines.errors import InvalidModel
from engines.spec import ModelSpec, Task, check_model
from gateway.toml_source import TomlSource
from gateway.toml_values import convert, from_text

_DOCUMENT = "docs/configuration.md"
_GIB = 1024**3
_NAME = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}"


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line that says where and what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """``[server]``: where the gateway listens, and what it does to a connection. Times are in seconds."""

    host: str = "127.0.0.1"
    port: int = 8080
    log_level: str = "info"
    log_format: str = "text"
    log_file: Path | None = None
    log_file_bytes: int = 10 * 1024 * 1024
    log_files_kept: int = 5
    trusted_proxies: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    max_header_bytes: int = 32 * 1024
    header_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    send_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    drain_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """``[storage]``: the data directory and the database."""

    data_dir: Path = Path(".torpor")
    database: str | None = None

    def database_url(self) -> str:
        """The SQLAlchemy URL: the configured one, or SQLite in the data directory."""
        return self.database or f"sqlite+aiosqlite:///{self.data_dir / 'torpor.db'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """``[limits]``: what one request may take."""

    max_body_bytes: int = 4 * 1024 * 1024
    max_json_depth: int = 64
    wake_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesConfig:
    """``[engines]``: the host that the engines share."""

    memory_gib: float | None = None
    snapshots: bool = True
    criu: Path | None = None
    spare_sandboxes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One ``[[models]]`` table: a model that Torpor runs (``source``) or only routes to (``url``)."""

    id: str
    source: Path | None = None
    task: Task = Task.GENERATE
    engine_args: tuple[str, ...] = ()
    kv_cache_gib: float = 1.0
    max_model_len: int | None = None
    max_running: int = 32
    start_timeout_s: float = 300.0
    preload: bool = False
    min_hot: int = 0
    max_replicas: int = 1
    idle_pause_s: float = 10.0
    idle_snapshot_s: float | None = None
    wake_timeout_s: float | None = None
    snapshot: bool = True
    url: str | None = None
    api_key_env: str | None = None

    def spec(self, environment: Mapping[str, str]) -> ModelSpec:
        """What ``engines`` needs to know of the model."""
        return ModelSpec(
            id=self.id,
            task=self.task,
            source=self.source,
            engine_args=self.engine_args,
            max_model_len=self.max_model_len,
            memory_bytes=int(self.kv_cache_gib * _GIB),
            start_timeout_s=self.start_timeout_s,
            preload=self.preload,
            url=self.url.rstrip("/").removesuffix("/v1") if self.url else None,
            api_key=environment.get(self.api_key_env) if self.api_key_env else None,
            max_running=self.max_running,
            min_hot=self.min_hot,
            max_replicas=self.max_replicas,
            idle_pause_s=self.idle_pause_s,
            idle_snapshot_s=self.idle_snapshot_s,
            wake_timeout_s=self.wake_timeout_s,
            snapshot=self.snapshot,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration."""

    server: ServerConfig = field(default_factory=ServerConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    engines: EnginesConfig = field(default_factory=EnginesConfig)
    models: tuple[ModelConfig, ...] = ()


SECTIONS: Mapping[str, type[Any]] = types.MappingProxyType(
    {
        "server": ServerConfig,
        "storage": StorageConfig,
        "limits": LimitsConfig,
        "engines": EnginesConfig,
        "models": ModelConfig,
    }
)


Wanted = Mapping[str, Collection[str]]
"""Keys by section."""


def load_config(
    path: Path, environment: Mapping[str, str] | None = None, *, only: Wanted | None = None
) -> Config:
    """Reads the file, applies ``TORPOR_SECTION__KEY`` and ``TORPOR_PORT``, and checks all of it.

    Relative paths are relative to the file's folder. ``only`` names the keys that are of interest: all
    others, models included, are passed over with whatever is wrong with them. Raises `ConfigError`.
    """
    environment = os.environ if environment is None else environment
    source = _read(path)
    loader = _Loader(path, source)
    document = source.document
    if only is None:
        loader.check_sections(document)
        tables = _tables(document, environment)
    else:
        tables = _some_tables(document, environment, only)
    config = Config(
        server=loader.table(ServerConfig, "server", tables["server"]),
        storage=loader.table(StorageConfig, "storage", tables["storage"]),
        limits=loader.table(LimitsConfig, "limits", tables["limits"]),
        engines=loader.table(EnginesConfig, "engines", tables["engines"]),
        models=tuple(
            loader.table(ModelConfig, "models", table, index)
            for index, table in enumerate(document.get("models", []) if only is None else [])
        ),
    )
    _check(config, loader, environment)
    return config


@dataclass(frozen=True, slots=True)
class _Override:
    variable: str
    text: str


_Tables = dict[str, dict[str, Any]]


def _tables(document: Mapping[str, Any], environment: Mapping[str, str]) -> _Tables:
    """The tables but ``models``, with what the environment overrides."""
    tables: _Tables = {name: dict(document.get(name, {})) for name in SECTIONS if name != "models"}
    for section, key, variable, text in _overrides(environment):
        if section not in tables:
            raise ConfigError(f"{variable}: there is no section [{section}] ({_DOCUMENT})")
        tables[section][key] = _Override(variable, text)
    return tables


def _some_tables(document: Mapping[str, Any], environment: Mapping[str, str], only: Wanted) -> _Tables:
    """As `_tables`, with the wanted keys alone."""
    tables: _Tables = {name: {} for name in SECTIONS if name != "models"}
    for section, keys in only.items():
        table = document.get(section)
        if isinstance(table, dict):
            tables[section] = {key: value for key, value in table.items() if key in keys}
    for section, key, variable, text in _overrides(environment):
        if key in only.get(section, ()):
            tables[section][key] = _Override(variable, text)
    return tables


def _read(path: Path) -> TomlSource:
    try:
        return TomlSource.read(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `torpor setup` writes one") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _overrides(environment: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    found = []
    for name, value in sorted(environment.items()):
        if name == "TORPOR_PORT":
            found.append(("server", "port", name, value))
        elif name.startswith("TORPOR_") and "__" in name:
            section, _, key = name.removeprefix("TORPOR_").lower().partition("__")
            found.append((section, key, name, value))
    return found


class _Loader:
    """Turns tables into dataclasses, and says where a fault is."""

    def __init__(self, path: Path, source: TomlSource) -> None:
        self._path = path
        self._source = source

    def fault(self, section: str, key: str | None, what: str, index: int = 0) -> ConfigError:
        line = self._source.line(section, key, index)
        table = f"[[{section}]]" if section == "models" else f"[{section}]"
        where = f"{self._path}:{line}" if line else str(self._path)
        subject = f"{table} {key}" if key else table
        return ConfigError(f"{where}: {subject}: {what} (see {_DOCUMENT}#{section})")

    def check_sections(self, document: Mapping[str, Any]) -> None:
        for name, value in document.items():
            if name not in SECTIONS:
                hint = _hint(name, SECTIONS)
                line = self._source.line(name, None) or self._source.line("", name)
                where = f"{self._path}:{line}" if line else str(self._path)
                raise ConfigError(f"{where}: {name}: unknown section{hint} (see {_DOCUMENT})")
            wanted = list if name == "models" else dict
            if not isinstance(value, wanted):
                form = "an array of tables, [[models]]" if name == "models" else f"a table, [{name}]"
                raise self.fault(name, None, f"must be {form}")

    def table(self, kind: type[Any], section: str, values: Any, index: int = 0) -> Any:
        if not isinstance(values, dict):
            raise self.fault(section, None, "must be a table", index)
        hints = get_type_hints(kind)
        known = {item.name: item for item in fields(kind)}
        result = {}
        for key, value in values.items():
            if key not in known:
                variable = f"{value.variable}: " if isinstance(value, _Override) else ""
                fault = self.fault(section, key, f"unknown key{_hint(key, known)}", index)
                raise ConfigError(f"{variable}{fault}")
            result[key] = self._value(section, key, hints[key], value, index)
        for item in known.values():
            required = item.default is MISSING and item.default_factory is MISSING
            if required and item.name not in result:
                raise self.fault(section, item.name, "is required", index)
            if isinstance(item.default, Path) and item.name not in result:
                result[item.name] = self._path.resolve().parent / item.default
        return kind(**result)

    def _value(self, section: str, key: str, hint: Any, value: Any, index: int) -> Any:
        try:
            if isinstance(value, _Override):
                return from_text(hint, value.text, Path.cwd())
            return convert(hint, value, self._path.resolve().parent)
        except ValueError as error:
            if isinstance(value, _Override):
                raise ConfigError(f"{value.variable}: {error} (see {_DOCUMENT}#{section})") from None
            raise self.fault(section, key, str(error), index) from None


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _check(config: Config, loader: _Loader, environment: Mapping[str, str]) -> None:
    """What a single value's type cannot say."""
    server = config.server
    if not 0 < server.port < 65536:
        raise loader.fault("server", "port", f"must be between 1 and 65535, not {server.port}")
    if server.log_format not in ("json", "text"):
        raise loader.fault("server", "log_format", f"must be json or text, not {server.log_format!r}")
    if server.log_level not in ("debug", "info", "warning", "error"):
        raise loader.fault("server", "log_level", "must be debug, info, warning or error")
    if (server.tls_certificate is None) != (server.tls_key is None):
        raise loader.fault("server", "tls_certificate", "tls_certificate and tls_key go together")
    for name in ("tls_certificate", "tls_key"):
        path = getattr(server, name)
        if path is not None and not path.is_file():
            raise loader.fault("server", name, f"no such file: {path}")
    for section, table in (("server", server), ("limits", config.limits)):
        for item in fields(table):
            value = getattr(table, item.name)
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and not 0 < value < float("inf")
            ):
                raise loader.fault(section, item.name, f"must be more than 0, not {value!r}")
    engines = config.engines
    if engines.memory_gib is not None and not 0 < engines.memory_gib < float("inf"):
        raise loader.fault("engines", "memory_gib", f"must be more than 0, not {engines.memory_gib!r}")
    if engines.spare_sandboxes < 0:
        raise loader.fault("engines", "spare_sandboxes", "must not be negative")
    _check_models(config, loader, environment)


def _check_models(config: Config, loader: _Loader, environment: Mapping[str, str]) -> None:
    seen: set[str] = set()
    for index, model in enumerate(config.models):
        if not _is_name(model.id):
            raise loader.fault("models", "id", f"must match {_NAME}", index)
        if model.id in seen:
            raise loader.fault("models", "id", f"there are two models {model.id!r}", index)
        seen.add(model.id)
        if (model.source is None) == (model.url is None):
            raise loader.fault("models", "source", "give either source or url", index)
        if model.url is not None and not model.url.startswith(("http://", "https://")):
            raise loader.fault(
                "models", "url", f"must start with http:// or https://, not {model.url!r}", index
            )
        if model.api_key_env and model.api_key_env not in environment:
            raise loader.fault("models", "api_key_env", f"{model.api_key_env} is not set", index)
        for key in (
            "kv_cache_gib", "max_running", "start_timeout_s", "max_replicas",
            "idle_pause_s", "idle_snapshot_s", "wake_timeout_s",
        ):  # fmt: skip
            value = getattr(model, key)
            if value is not None and not 0 < value < float("inf"):
                raise loader.fault("models", key, "must be more than 0", index)
        if not 0 <= model.min_hot <= model.max_replicas:
            raise loader.fault("models", "min_hot", "must be between 0 and max_replicas", index)
        if model.max_model_len is not None and model.max_model_len < 1:
            raise loader.fault("models", "max_model_len", "must be more than 0", index)
        try:
            check_model(model.spec(environment))
        except InvalidModel as error:
            raise loader.fault("models", "source", str(error), index) from None


def _is_name(text: str) -> bool:
    return re.fullmatch(_NAME, text) is not None
