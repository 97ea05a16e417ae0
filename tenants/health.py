"""Pings an idle database and logs when it becomes unreachable and when it recovers."""

import asyncio
import logging

from tenants.errors import StorageUnavailable
from tenants.storage import Storage

_logger = logging.getLogger("torpor.tenants")

WATCH_EVERY_S = 5.0


async def watch(storage: Storage) -> None:
    """Query a database that has been idle for a while, until this is cancelled."""
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
