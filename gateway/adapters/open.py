"""Opens the adapters of an installation."""

import logging
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.adapters.service import Adapters, Examiner
from gateway.config.adapters import AdaptersConfig
from gateway.storage.content import open_store
from tenants.adapters.registry import AdapterQuota, open_registry

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
