"""When keys were last used: noted in memory by each request, written in batches behind its back."""

import asyncio
import logging
import time
from collections.abc import Callable
from itertools import islice

from sqlalchemy import bindparam, or_, update
from sqlalchemy.exc import SQLAlchemyError

from tenants.errors import StorageUnavailable
from tenants.storage import Storage
from tenants.tables import api_keys

_logger = logging.getLogger("torpor.tenants")

WRITE_EVERY_S = 60.0
_BATCH = 500
"""Keys in one transaction: the ledger waits for no longer one."""

_AHEAD_MS = 5 * 60_000
"""A stored time that is further ahead of the clock is of a host whose clock was wrong: it is replaced."""

_WRITE = (
    update(api_keys)
    .where(api_keys.c.id == bindparam("key_id"))
    .where(
        or_(
            api_keys.c.last_used_ms.is_(None),
            api_keys.c.last_used_ms < bindparam("used_ms"),
            api_keys.c.last_used_ms > bindparam("latest_ms"),
        )
    )
    .values(last_used_ms=bindparam("used_ms"))
)


class LastUses:
    """When keys were last used: at most one write a key in ``write_every_s``, and one at the end.

    A crash loses the notes since the last write. A key has one note at most, so the number of keys bounds the
    memory. ``clock`` is in unix seconds.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Callable[[], float] = time.time,
        *,
        write_every_s: float = WRITE_EVERY_S,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._write_every_s = write_every_s
        self._noted: dict[str, int] = {}
        self._closing = asyncio.Event()

    def note(self, key_id: str, used_ms: int) -> None:
        """The key was used at this time, in milliseconds since the epoch."""
        self._noted[key_id] = used_ms

    async def run(self) -> None:
        """Write what is noted from time to time until `close`, and then once more."""
        while not self._closing.is_set():
            try:
                async with asyncio.timeout(self._write_every_s):
                    await self._closing.wait()
            except TimeoutError:
                pass
            await self._write()

    def close(self) -> None:
        """Lets `run` come to its end."""
        self._closing.set()

    async def _write(self) -> None:
        """What cannot be written stays noted, unless there is a later note by then."""
        noted, self._noted = self._noted, {}
        try:
            while batch := list(islice(noted.items(), _BATCH)):
                async with self._storage.write() as connection:
                    now_ms = int(self._clock() * 1000)
                    rows = [
                        {
                            "key_id": key_id,
                            # The clock may have been set back since.
                            "used_ms": min(used_ms, now_ms),
                            "latest_ms": now_ms + _AHEAD_MS,
                        }
                        for key_id, used_ms in batch
                    ]
                    await connection.execute(_WRITE, rows)
                for key_id, _ in batch:
                    del noted[key_id]
        except (StorageUnavailable, SQLAlchemyError) as error:
            self._noted = {**noted, **self._noted}
            _logger.warning("when %d keys were last used could not be written: %s", len(noted), error)
