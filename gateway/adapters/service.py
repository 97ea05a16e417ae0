"""An adapter from its upload to its end: received, checked, examined on an engine, registered, removed."""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from engines.adapter import Adapter
from engines.errors import AdapterRejected
from engines.spec import LoraSettings, ModelSpec
from gateway.adapters.archives import lay_out
from gateway.adapters.base_shapes import UnknownShapes, read_shapes
from gateway.adapters.errors import InvalidAdapter
from gateway.adapters.multipart import Form, Upload, receive
from gateway.adapters.peft import MAX_CONFIG_BYTES
from gateway.adapters.validation import Checked, check_adapter
from gateway.config.sections import AdaptersConfig
from gateway.http.errors import ApiError, invalid_request, storage_unavailable
from gateway.http.host_paths import without_paths
from gateway.inference.catalog import Catalog
from gateway.storage.content import ContentStore, open_store
from tenants.adapters.index import RegisteredAdapter
from tenants.adapters.permissions import AdapterPermissions
from tenants.adapters.registry import AdapterQuota, AdapterRegistry, NewAdapter, open_registry
from tenants.types import ProjectPrincipal

_logger = logging.getLogger("torpor.adapters")

T = TypeVar("T")
_SUFFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIELDS = frozenset({"base_model", "suffix", "visibility"})
_MAX_REASON = 300
_CHECKS_AT_ONCE = 2
"""Each reads and hashes whole files in a thread, which other requests need as well."""


class Examiner(Protocol):
    """The part of `EngineHost` that adapters need before they are served and after."""

    async def examine(self, model_id: str, adapter: Adapter) -> bytes:
        """As `EngineHost.examine`."""

    def forget(self, digest: str) -> None:
        """As `EngineHost.forget`."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the fields of an upload say."""

    base: ModelSpec
    lora: LoraSettings
    suffix: str
    private: bool


class Adapters:
    """Adapters of all tenants: the registry, and the content that it names."""

    def __init__(
        self, registry: AdapterRegistry, store: ContentStore, host: Examiner, config: AdaptersConfig
    ) -> None:
        self.registry = registry
        self.permissions = AdapterPermissions(registry)
        self._store = store
        self._host = host
        self._config = config
        self._uploads: Counter[str] = Counter()
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)

    def __len__(self) -> int:
        return len(self.registry.index)

    def for_engine(self, adapter: RegisteredAdapter) -> Adapter:
        """The adapter as an engine is handed it."""
        folder = self._store.place(adapter.digest)
        return Adapter(adapter.name, adapter.digest, folder, adapter.rank, adapter.canary)

    def usable(self, project_id: str, name: str) -> bool:
        """Whether any user of the project may use the adapter."""
        return self.registry.index.usable(project_id, name)

    async def register(
        self, request: Request, principal: ProjectPrincipal, catalog: Catalog
    ) -> RegisteredAdapter:
        """Take an upload; when it returns, the adapter is durable, and an engine was seen to serve it.

        Every upload is checked and examined in full, also where its content is there already: who else has
        it cannot be told from how long it takes. Raises `ApiError`, `QuotaExceeded`, `EngineUnavailable`,
        `StorageUnavailable` and ``ClientDisconnect``.
        """
        self.registry.check_quota(principal.project_id, 0)
        async with self._slot(principal.project_id):
            try:
                async with self._store.incoming() as folder:
                    return await self._register(request, principal, catalog, folder)
            except InvalidAdapter as error:
                raise invalid_request(error.message, error.param, "invalid_adapter") from None
            except AdapterRejected as error:
                raise invalid_request(_refusal(error), "file", "invalid_adapter") from None
            except OSError as error:
                _logger.error("an upload cannot be stored: %s", error)
                raise storage_unavailable() from error

    async def _register(
        self, request: Request, principal: ProjectPrincipal, catalog: Catalog, folder: Path
    ) -> RegisteredAdapter:
        config = self._config
        files = {"file": config.max_upload_bytes, "config": MAX_CONFIG_BYTES}
        upload = await receive(request, Form(_FIELDS, files, config.upload_timeout_s), folder)
        new = _wanted(upload, principal, catalog)
        adapter_folder = folder / "adapter"
        async with self._checks:
            checked = await asyncio.to_thread(_check, upload, new, adapter_folder, config.max_upload_bytes)
        self.registry.check_quota(principal.project_id, checked.size_bytes)
        return await _unbroken(self._examined(principal, new, adapter_folder, checked))

    async def _examined(
        self, principal: ProjectPrincipal, request: _Wanted, folder: Path, checked: Checked
    ) -> RegisteredAdapter:
        """Take what is at the place into the store and, when an engine serves it, into the registry."""
        async with self._store.kept(folder, checked.digest, self.registry.index.uses) as kept:
            new = Adapter(f"examined {request.suffix}", checked.digest, kept, checked.rank)
            canary = await self._host.examine(request.base.id, new)
            return await self.registry.add(
                NewAdapter(
                    principal=principal,
                    private=request.private,
                    base_model=request.base.id,
                    suffix=request.suffix,
                    digest=checked.digest,
                    rank=checked.rank,
                    size_bytes=checked.size_bytes,
                    canary=canary,
                )
            )

    @asynccontextmanager
    async def _slot(self, project_id: str) -> AsyncIterator[None]:
        """Hold one of the uploads that the project may have at once."""
        most = self._config.uploads_at_once
        if self._uploads[project_id] >= most:
            raise ApiError(
                429,
                "rate_limit_error",
                "rate_limit_exceeded",
                f"Your project already has {most} uploads in progress, the maximum. Retry when one ends.",
                headers={"retry-after": "2"},
            )
        self._uploads[project_id] += 1
        try:
            yield
        finally:
            self._uploads[project_id] -= 1
            if not self._uploads[project_id]:
                del self._uploads[project_id]

    async def delete(self, adapter: RegisteredAdapter) -> None:
        """Delete the adapter; no request may use it from now on. Its content goes with the last adapter that
        has it.

        Raises `NotFound` if it was deleted before.
        """
        await self.registry.delete(adapter)
        if not self.registry.index.uses(adapter.digest):
            self._host.forget(adapter.digest)
        await self._store.drop(adapter.digest, self.registry.index.uses)


async def _unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Await the work to its end, even if the caller is cancelled.

    A commit on its way cannot be recalled: the content must not go before it is known what came of it.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _wanted(upload: Upload, principal: ProjectPrincipal, catalog: Catalog) -> _Wanted:
    """Read an upload's fields. Raises `ApiError` for the first that is missing or wrong."""
    fields = upload.fields
    for name in ("base_model", "suffix"):
        if not fields.get(name):
            message = f"Missing required parameter: '{name}'."
            raise invalid_request(message, name, "missing_required_parameter")
    if "file" not in upload.files:
        raise invalid_request("Missing required parameter: 'file'.", "file", "missing_required_parameter")
    if not _SUFFIX.fullmatch(fields["suffix"]):
        message = "'suffix' must be 1 to 64 of the characters A-Z, a-z, 0-9, '.', '_' and '-'."
        raise invalid_request(message, "suffix", "invalid_value")
    base = catalog.resolve(principal, fields["base_model"]).spec
    if base.lora is None:
        message = f"The model `{base.id}` takes no adapters on this installation."
        raise invalid_request(message, "base_model", "model_not_supported")
    return _Wanted(base, base.lora, fields["suffix"], _is_private(fields, principal))


def _is_private(fields: Mapping[str, str], principal: ProjectPrincipal) -> bool:
    visibility = fields.get("visibility") or "project"
    if visibility not in ("project", "user"):
        raise invalid_request("'visibility' must be project or user.", "visibility", "invalid_value")
    private = visibility == "user"
    if private and (principal.issuer is None or principal.user_id is None):
        message = "Only a token that names a user can upload an adapter with the visibility 'user'."
        raise invalid_request(message, "visibility", "invalid_value")
    return private


def _refusal(error: AdapterRejected) -> str:
    """The engine's reason as its owner may read it: not long, and without any path of this host."""
    return f"The engine refuses the adapter: {without_paths(str(error))[:_MAX_REASON]}"


def _check(upload: Upload, request: _Wanted, folder: Path, most_bytes: int) -> Checked:
    """In a thread: lays both files out at the place, and checks them."""
    if request.base.source is None:
        raise InvalidAdapter("The base model's own files are not here.", "base_model")
    try:
        shapes = read_shapes(request.base.source)
    except UnknownShapes as error:
        message = f"The model `{request.base.id}` takes no adapters: {error}."
        raise InvalidAdapter(message, "base_model") from None
    folder.mkdir(mode=0o700)
    lay_out(upload.files["file"], upload.files.get("config"), folder, most_bytes)
    return check_adapter(folder, shapes, request.lora.max_rank)


_logger = logging.getLogger("torpor.adapters")


async def open_adapters(
    database: AsyncEngine, folder: Path, host: Examiner, config: AdaptersConfig
) -> Adapters:
    """The registry, and the store of its content, which this process alone may use.

    Raises `StorageUnavailable`, and OSError where the folder cannot be made.
    """
    quota = AdapterQuota(config.max_per_project, config.max_bytes_per_project)
    registry = await open_registry(database, quota)
    store, missing = await open_store(folder, registry.index.digests())
    for digest in missing:
        _logger.error("the content %s of an adapter is not in the data directory", digest)
    return Adapters(registry, store, host, config)
