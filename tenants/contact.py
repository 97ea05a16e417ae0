"""Keeps in contact with the database, and tells when it goes away and comes back."""

import asyncio
import logging

from tenants.errors import StorageUnavailable
from tenants.storage import Storage

_logger = logging.getLogger("torpor.tenants")

WATCH_EVERY_S = 5.0


async def watch(storage: Storage) -> None:
    """Asks a database that nobody else has asked for a while; ends when it is cancelled."""
    away = False
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        try:
            if away or storage.silent_s() >= WATCH_EVERY_S:
                await storage.ping()
        except StorageUnavailable as error:
            if not away:
                _logger.error(
                    "%s: keys and projects in memory go on working for %g s", error, storage.memory_s
                )
            away = True
        else:
            if away:
                _logger.warning("the database is back")
            away = False
