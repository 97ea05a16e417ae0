"""The configuration: one TOML file into frozen dataclasses, overridable by environment.

``docs/reference/configuration.md`` documents every key; a test holds it to that.
"""

import os
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from engines.checkpoint import DTYPE_BYTES
from engines.errors import InvalidModel
from engines.fitting.choice import ModelMisfit, require_fit
from engines.spec import LoraSettings, ModelSpec, Task, TokenArrays, check_model
from gateway.config.alerts import AlertsConfig, alerts_faults
from gateway.config.faults import Fault
from gateway.config.identity import AuthenticationConfig, IssuerConfig, issuer_faults
from gateway.config.loader import ConfigError as ConfigError
from gateway.config.loader import Loader, Wanted, all_tables, read_source, some_tables
from gateway.config.prices import PriceConfig, price_faults
from gateway.config.tools import tool_faults
from tenants.limits.rate_limits import MOST


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersConfig:
    """What an upload may take, and what a project may have. Sizes in bytes, times in seconds."""

    max_upload_bytes: int = 512 * 1024**2
    upload_timeout_s: float = 600.0
    uploads_at_once: int = 4
    max_per_project: int = 10_000
    max_bytes_per_project: int = 20 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """``[metrics]``: a separate listener, on loopback by default."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 9464
    by_project: bool = False


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
    max_sequences: int = 128
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
    require_sandbox: bool = False

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
    max_step_ms: float = 500.0
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
            max_step_ms=self.max_step_ms,
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
    for fault in _faults(config, environment):
        raise loader.fault(fault.section, fault.key, fault.message, fault.index)
    return config


def _faults(config: Config, environment: Mapping[str, str]) -> Iterator[Fault]:
    """What is wrong beyond the type of a single value, in the order in which it is reported."""
    yield from _server_faults(config.server)
    yield from _positive_faults(config)
    yield from _engine_faults(config.engines)
    yield from alerts_faults(config.alerts, environment)
    yield from _model_faults(config, environment)
    models = [model.id for model in config.models]
    for index in range(len(config.prices)):
        yield from price_faults(config.prices, index, models)
    yield from issuer_faults(config.issuers, environment)


def _server_faults(server: ServerConfig) -> Iterator[Fault]:
    if not 0 < server.port < 65536:
        yield Fault("server", "port", f"must be between 1 and 65535, not {server.port}")
    if server.log_format not in ("json", "text"):
        yield Fault("server", "log_format", f"must be json or text, not {server.log_format!r}")
    if server.log_level not in ("debug", "info", "warning", "error"):
        yield Fault("server", "log_level", "must be debug, info, warning or error")
    if (server.tls_certificate is None) != (server.tls_key is None):
        yield Fault("server", "tls_certificate", "tls_certificate and tls_key go together")
    for name in ("tls_certificate", "tls_key"):
        path = getattr(server, name)
        if path is not None and not path.is_file():
            yield Fault("server", name, f"no such file: {path}")


def _engine_faults(engines: EnginesConfig) -> Iterator[Fault]:
    if engines.memory_gib is not None and not 0 < engines.memory_gib < float("inf"):
        yield Fault("engines", "memory_gib", f"must be more than 0, not {engines.memory_gib!r}")
    if engines.spare_sandboxes < 0:
        yield Fault("engines", "spare_sandboxes", "must not be negative")
    if not 0 <= engines.inspect_interval_s < float("inf"):
        what = f"must be 0 (never) or a number of seconds, not {engines.inspect_interval_s!r}"
        yield Fault("engines", "inspect_interval_s", what)


def _positive_faults(config: Config) -> Iterator[Fault]:
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
                yield Fault(section, item.name, f"must be more than 0, not {value!r}")
    for key in ("requests_per_minute", "tokens_per_minute", "requests_per_day"):
        if (getattr(config.limits, key) or 0) > MOST:
            yield Fault("limits", key, f"must be at most {MOST}")


def _model_faults(config: Config, environment: Mapping[str, str]) -> Iterator[Fault]:
    seen: set[str] = set()
    for index, model in enumerate(config.models):
        if not _is_name(model.id):
            yield Fault("models", "id", f"must match {_NAME}", index)
        if model.id in seen:
            yield Fault("models", "id", f"there are two models {model.id!r}", index)
        seen.add(model.id)
        if (model.source is None) == (model.url is None):
            yield Fault("models", "source", "give either source or url", index)
        if model.url is not None and not model.url.startswith(("http://", "https://")):
            yield Fault("models", "url", f"must start with http:// or https://, not {model.url!r}", index)
        if model.api_key_env and model.api_key_env not in environment:
            yield Fault("models", "api_key_env", f"{model.api_key_env} is not set", index)
        if model.dtype not in (names := ("auto", *DTYPE_BYTES)):
            yield Fault("models", "dtype", f"must be one of {', '.join(names)}", index)
        for key in (
            "kv_cache_gib", "max_running", "max_step_ms", "start_timeout_s", "max_replicas",
            "idle_pause_s", "idle_snapshot_s", "wake_timeout_s", "max_concurrent", "max_queued",
            "queue_timeout_s", "max_model_len",
        ):  # fmt: skip
            value = getattr(model, key)
            if value is not None and not 0 < value < float("inf"):
                yield Fault("models", key, "must be more than 0", index)
        yield from _queue_faults(model, index)
        yield from tool_faults(model, index)
        yield from _lora_faults(model, index)
        if not 0 <= model.min_hot <= model.max_replicas:
            yield Fault("models", "min_hot", "must be between 0 and max_replicas", index)
        yield from _file_faults(model.spec(environment), config, index)


def _file_faults(spec: ModelSpec, config: Config, index: int) -> Iterator[Fault]:
    """Files that are missing or damaged, and a model that does not fit into the memory."""
    try:
        check_model(spec)
        require_fit(spec, config.engines.memory_bytes)
    except ModelMisfit as error:
        yield Fault("models", error.key, str(error), index)
    except InvalidModel as error:
        yield Fault("models", "source", str(error), index)


def _lora_faults(model: ModelConfig, index: int) -> Iterator[Fault]:
    if model.lora is not None and (model.url is not None or model.task is Task.EMBED):
        yield Fault("models", "lora", "is for models that Torpor runs and that generate", index)
    for key, message in () if model.lora is None else model.lora.faults():
        yield Fault("models.lora", key, message, index)


def _is_name(text: str) -> bool:
    return re.fullmatch(_NAME, text) is not None


def _queue_faults(model: ModelConfig, index: int) -> Iterator[Fault]:
    slots = model.max_concurrent or model.max_running
    if model.url is None and slots > model.max_running:
        yield Fault("models", "max_concurrent", "must not be more than max_running", index)
    if not 0 <= (model.reserved_slots or 0) < slots:
        message = f"must be between 0 and {slots - 1}, one less than max_concurrent"
        yield Fault("models", "reserved_slots", message, index)
    if model.url is not None and model.dedicated_projects:
        yield Fault("models", "dedicated_projects", "is for models that Torpor runs", index)
