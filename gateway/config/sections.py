"""The configuration: one TOML file into frozen dataclasses, overridable by environment.

``docs/reference/configuration.md`` documents every key; a test holds it to that.
"""

import os
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from engines.checkpoint import DTYPE_BYTES
from engines.errors import InvalidModel
from engines.fitting.choice import ModelMisfit, require_fit
from engines.spec import LoraSettings, ModelSpec, Task, TokenArrays, check_model
from gateway.config.adapters import AdaptersConfig
from gateway.config.alerts import AlertsConfig, alerts_fault
from gateway.config.identity import AuthenticationConfig, IssuerConfig, issuer_faults
from gateway.config.loader import ConfigError as ConfigError
from gateway.config.loader import Loader, Wanted, all_tables, read_source, some_tables
from gateway.config.metrics import MetricsConfig
from gateway.config.prices import PriceConfig, price_fault
from gateway.config.tools import tool_fault
from tenants.limits.rate_limits import MOST

_GIB = 1024**3
_NAME = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}"


class QueueDiscipline(StrEnum):
    """In which order the requests of a model are served."""

    FAIR = "fair"
    FIFO = "fifo"


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
    cors_origins: tuple[str, ...] = ()


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
    """``[limits]``: what one request may take, and what a project may ask of a model by default."""

    max_body_bytes: int = 4 * 1024 * 1024
    max_json_depth: int = 64
    wake_timeout_s: float = 300.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_per_day: int | None = None
    queue_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesConfig:
    """``[engines]``: the host that the engines share."""

    memory_gib: float | None = None
    snapshots: bool = True
    criu: Path | None = None
    spare_sandboxes: int = 1
    inspect_interval_s: float = 3600.0

    @property
    def memory_bytes(self) -> int | None:
        """What all engines together may use; None for the default."""
        return int(self.memory_gib * _GIB) if self.memory_gib else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One ``[[models]]`` table: a model that Torpor runs (``source``) or only routes to (``url``)."""

    id: str
    source: Path | None = None
    task: Task = Task.GENERATE
    engine_args: tuple[str, ...] = ()
    kv_cache_gib: float | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    max_running: int = 32
    max_concurrent: int | None = None
    reserved_slots: int | None = None
    max_queued: int = 256
    queue_timeout_s: float | None = None
    queue_discipline: QueueDiscipline = QueueDiscipline.FAIR
    dedicated_projects: tuple[str, ...] = ()
    start_timeout_s: float = 300.0
    preload: bool = False
    min_hot: int = 0
    max_replicas: int = 1
    idle_pause_s: float = 10.0
    idle_snapshot_s: float | None = None
    wake_timeout_s: float | None = None
    snapshot: bool = True
    token_arrays: TokenArrays | None = None
    lora: LoraSettings | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: Path | None = None
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
            memory_bytes=0 if self.kv_cache_gib is None else max(1, int(self.kv_cache_gib * _GIB)),
            dtype=self.dtype,
            start_timeout_s=self.start_timeout_s,
            preload=self.preload,
            url=self.url.rstrip("/").removesuffix("/v1") if self.url else None,
            api_key=environment.get(self.api_key_env) if self.api_key_env else None,
            max_running=self.max_running,
            max_concurrent=self.max_concurrent,
            min_hot=self.min_hot,
            max_replicas=self.max_replicas,
            idle_pause_s=self.idle_pause_s,
            idle_snapshot_s=self.idle_snapshot_s,
            wake_timeout_s=self.wake_timeout_s,
            snapshot=self.snapshot,
            token_arrays=self.token_arrays,
            lora=self.lora,
            tool_parser=self.tool_parser,
            reasoning_parser=self.reasoning_parser,
            chat_template=self.chat_template,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration."""

    server: ServerConfig = field(default_factory=ServerConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    engines: EnginesConfig = field(default_factory=EnginesConfig)
    authentication: AuthenticationConfig = field(default_factory=AuthenticationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    alerts: AlertsConfig = field(default_factory=AlertsConfig)
    adapters: AdaptersConfig = field(default_factory=AdaptersConfig)
    models: tuple[ModelConfig, ...] = ()
    prices: tuple[PriceConfig, ...] = ()
    issuers: tuple[IssuerConfig, ...] = ()


SECTIONS: Mapping[str, type[Any]] = types.MappingProxyType(
    {
        "server": ServerConfig,
        "storage": StorageConfig,
        "limits": LimitsConfig,
        "engines": EnginesConfig,
        "authentication": AuthenticationConfig,
        "metrics": MetricsConfig,
        "alerts": AlertsConfig,
        "adapters": AdaptersConfig,
        "models": ModelConfig,
        "prices": PriceConfig,
        "issuers": IssuerConfig,
    }
)
NESTED: Mapping[str, type[Any]] = types.MappingProxyType({"models.lora": LoraSettings})
_ARRAYS = ("models", "prices", "issuers")
_TABLES = tuple(name for name in SECTIONS if name not in _ARRAYS)


def load_config(
    path: Path, environment: Mapping[str, str] | None = None, *, only: Wanted | None = None
) -> Config:
    """Read the file, apply ``TORPOR_SECTION__KEY`` and ``TORPOR_PORT``, and check all of it.

    Relative paths are relative to the file's folder. ``only`` names the keys that are of interest: all
    others, models included, are passed over with whatever is wrong with them. Raises `ConfigError`.
    """
    environment = os.environ if environment is None else environment
    source = read_source(path)
    loader = Loader(path, source, SECTIONS, _ARRAYS)
    document = source.document
    if only is None:
        loader.check_sections(document)
        tables = all_tables(document, environment, _TABLES)
    else:
        tables = some_tables(document, environment, _TABLES, only)
    config = Config(
        server=loader.table(ServerConfig, "server", tables["server"]),
        storage=loader.table(StorageConfig, "storage", tables["storage"]),
        limits=loader.table(LimitsConfig, "limits", tables["limits"]),
        engines=loader.table(EnginesConfig, "engines", tables["engines"]),
        authentication=loader.table(AuthenticationConfig, "authentication", tables["authentication"]),
        metrics=loader.table(MetricsConfig, "metrics", tables["metrics"]),
        alerts=loader.table(AlertsConfig, "alerts", tables["alerts"]),
        adapters=loader.table(AdaptersConfig, "adapters", tables["adapters"]),
        models=loader.array(ModelConfig, "models", document if only is None else {}),
        prices=loader.array(PriceConfig, "prices", document if only is None else {}),
        issuers=loader.array(IssuerConfig, "issuers", document if only is None else {}),
    )
    _check(config, loader, environment)
    for index, key, what in issuer_faults(config.issuers, environment):
        raise loader.fault("issuers", key, what, index)
    return config


def _check(config: Config, loader: Loader, environment: Mapping[str, str]) -> None:
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
    _check_positive(config, loader)
    engines = config.engines
    if engines.memory_gib is not None and not 0 < engines.memory_gib < float("inf"):
        raise loader.fault("engines", "memory_gib", f"must be more than 0, not {engines.memory_gib!r}")
    if engines.spare_sandboxes < 0:
        raise loader.fault("engines", "spare_sandboxes", "must not be negative")
    if not 0 <= engines.inspect_interval_s < float("inf"):
        what = f"must be 0 (never) or a number of seconds, not {engines.inspect_interval_s!r}"
        raise loader.fault("engines", "inspect_interval_s", what)
    if wrong := alerts_fault(config.alerts, environment):
        raise loader.fault("alerts", *wrong)
    _check_models(config, loader, environment)
    _check_prices(config, loader)


def _check_positive(config: Config, loader: Loader) -> None:
    for section, table in (
        ("server", config.server),
        ("limits", config.limits),
        ("authentication", config.authentication),
        ("metrics", config.metrics),
        ("alerts", config.alerts),
        ("adapters", config.adapters),
    ):
        for item in fields(table):
            value = getattr(table, item.name)
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and not 0 < value < float("inf")
            ):
                raise loader.fault(section, item.name, f"must be more than 0, not {value!r}")
    for key in ("requests_per_minute", "tokens_per_minute", "requests_per_day"):
        if (getattr(config.limits, key) or 0) > MOST:
            raise loader.fault("limits", key, f"must be at most {MOST}")


def _check_prices(config: Config, loader: Loader) -> None:
    models = [model.id for model in config.models]
    for index in range(len(config.prices)):
        if fault := price_fault(config.prices, index, models):
            raise loader.fault("prices", *fault, index)


def _check_models(config: Config, loader: Loader, environment: Mapping[str, str]) -> None:
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
        _check_data_type(model, loader, index)
        for key in (
            "kv_cache_gib", "max_running", "start_timeout_s", "max_replicas",
            "idle_pause_s", "idle_snapshot_s", "wake_timeout_s", "max_concurrent", "max_queued",
            "queue_timeout_s", "max_model_len",
        ):  # fmt: skip
            value = getattr(model, key)
            if value is not None and not 0 < value < float("inf"):
                raise loader.fault("models", key, "must be more than 0", index)
        if (wrong := queue_fault(model) or tool_fault(model)) is not None:
            raise loader.fault("models", *wrong, index)
        _check_lora(model, loader, index)
        if not 0 <= model.min_hot <= model.max_replicas:
            raise loader.fault("models", "min_hot", "must be between 0 and max_replicas", index)
        _check_files(model.spec(environment), config, loader, index)


def _check_data_type(model: ModelConfig, loader: Loader, index: int) -> None:
    if model.dtype not in (names := ("auto", *DTYPE_BYTES)):
        raise loader.fault("models", "dtype", f"must be one of {', '.join(names)}", index)


def _check_files(spec: ModelSpec, config: Config, loader: Loader, index: int) -> None:
    """The model's files are complete, and an engine of it fits into the memory."""
    try:
        check_model(spec)
        require_fit(spec, config.engines.memory_bytes)
    except ModelMisfit as error:
        raise loader.fault("models", error.key, str(error), index) from None
    except InvalidModel as error:
        raise loader.fault("models", "source", str(error), index) from None


def _check_lora(model: ModelConfig, loader: Loader, index: int) -> None:
    if model.lora is not None and (model.url is not None or model.task is Task.EMBED):
        raise loader.fault("models", "lora", "is for models that Torpor runs and that generate", index)
    if model.lora is not None and (wrong := model.lora.fault()) is not None:
        raise loader.fault("models.lora", *wrong, index)


def _is_name(text: str) -> bool:
    return re.fullmatch(_NAME, text) is not None


def queue_fault(model: ModelConfig) -> tuple[str, str] | None:
    """The key that is wrong, and why."""
    slots = model.max_concurrent or model.max_running
    if model.url is None and slots > model.max_running:
        return "max_concurrent", "must not be more than max_running"
    if not 0 <= (model.reserved_slots or 0) < slots:
        return "reserved_slots", f"must be between 0 and {slots - 1}, one less than max_concurrent"
    if model.url is not None and model.dedicated_projects:
        return "dedicated_projects", "is for models that Torpor runs"
    return None
