"""What the ledger asks of the part that brings its rows into the database."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from metering.ledger.journal import Group, Row

MAX_QUEUED = 16_384
"""Writes that are waited for, beyond which no entry is opened."""
MAX_BATCH = 1_024
"""Writes in one group of the journal."""
RETRY_S = 0.25
"""After a failed commit, the next attempt comes so soon."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told what of a writer, on the event loop.

    ``applied`` with the number of the last group that the database has; ``failed`` after a commit that
    failed.
    """

    applied: Callable[[int], None]
    failed: Callable[[], None]


class DatabaseWriter(Protocol):
    """Brings groups of rows into the database, in order, off the path of the request.

    Made on the event loop. What fails is kept, merged with what follows, and tried again.
    """

    async def store(self, rows: Sequence[Row]) -> None:
        """Write rows at once, before `start`. Raises `StorageUnavailable`."""

    async def open_rows(self, owner: str) -> list[Row]:
        """The open entries of an owner, and those without any. Raises `StorageUnavailable`."""

    def start(self, listener: Listener) -> None:
        """Begins to write."""

    def put(self, group: Group) -> None:
        """Queues a group. Never fails, never waits."""

    def hurry(self, number: int) -> None:
        """Write this group, and those before it, without waiting for more: a caller waits for it."""

    async def close(self) -> int:
        """Try once more to write everything, and end. Returns how many rows remain."""
