"""What the ledger asks of a writer."""

from typing import Protocol

from metering.entries import Write

MAX_QUEUED = 16_384
"""Writes that are waited for, beyond which no entry is opened."""
MAX_BATCH = 1_024
"""Writes in one commit."""
RETRY_S = 0.25
"""After a failed commit, the next attempt comes so soon."""


class LedgerWriter(Protocol):
    """Makes writes durable in groups, in order, off the path of the request.

    Made on the event loop on which its tickets are resolved.
    """

    async def start(self) -> int:
        """Settles what a crash left open as ``interrupted`` and returns how many that were.

        Raises `StorageUnavailable`, and has then nothing to be closed.
        """

    def put(self, write: Write) -> None:
        """Queues a write. Never fails, never waits."""

    @property
    def accepts(self) -> bool:
        """Whether entries should be opened: the storage does not fail, and the queue is not full."""

    @property
    def waiting(self) -> int:
        """Writes that somebody waits for."""

    async def close(self) -> None:
        """Tries once more to make everything durable, and ends. Tickets that remain are failed."""
