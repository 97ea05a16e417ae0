"""The ledger: every attempt is opened once and settled once, durably, whatever happens in between."""

import asyncio
import logging
import time
from types import TracebackType
from typing import Self

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.entries import Settlement, Write
from metering.errors import StorageUnavailable
from metering.sql_writer import SqlWriter
from metering.sqlite_writer import SqliteWriter
from metering.tickets import Ticket
from metering.types import Attempt, Outcome, Timings, Usage
from metering.writers import LedgerWriter

_log = logging.getLogger("torpor.ledger")

CHECKPOINT_S = 0.2
"""Meters that changed are checkpointed so often; 0.25 s is promised."""


class Ledger:
    """Opens meters for attempts. An async context manager, whose exit makes everything durable.

    Entering raises `StorageUnavailable` where the ledger cannot be read and written.
    """

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer
        self._open: dict[str, Meter] = {}
        self._changed: dict[str, Meter] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._running = False

    async def __aenter__(self) -> Self:
        interrupted = await self._writer.start()
        if interrupted:
            _log.warning("%d entries were left open by a crash; settled as interrupted", interrupted)
        self._running = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for meter in list(self._open.values()):
            meter.finish(Outcome.INTERRUPTED)
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        await self._writer.close()

    @property
    def accepts(self) -> bool:
        """Whether an entry can be opened now."""
        return self._running and self._writer.accepts

    @property
    def backlog(self) -> int:
        """Writes that somebody waits for."""
        return self._writer.waiting

    @property
    def open_entries(self) -> int:
        """Meters that are not settled."""
        return len(self._open)

    def open(self, attempt: Attempt) -> "Meter":
        """Queues the opening entry and returns its meter at once.

        Raises `StorageUnavailable` where the ledger is closed, cannot be written, or its queue is full.
        """
        if not self._running or not self._writer.accepts:
            raise StorageUnavailable("the ledger takes no entries now")
        meter = Meter(self, attempt)
        self._open[attempt.id] = meter
        return meter

    def put(self, write: Write) -> None:
        """Queues a write of one of the ledger's meters; once the ledger is closed, it fails."""
        if self._running:
            self._writer.put(write)
            return
        for ticket in write.tickets:
            ticket.resolve(StorageUnavailable("the ledger is closed"))

    def changed(self, meter: "Meter") -> None:
        """The meter's usage is to be checkpointed when it is time."""
        self._changed[meter.attempt.id] = meter
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHECKPOINT_S, self._checkpoint)

    def settled(self, meter: "Meter") -> None:
        """The meter needs nothing more."""
        self._open.pop(meter.attempt.id, None)
        self._changed.pop(meter.attempt.id, None)

    def _checkpoint(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, {}
        for meter in changed.values():
            self.put(Write(meter.attempt, meter.usage))


class Meter:
    """The entry of one attempt: observed while it goes on, settled once."""

    __slots__ = ("_ledger", "_opened", "_settled", "_usage", "attempt")

    def __init__(self, ledger: Ledger, attempt: Attempt) -> None:
        self.attempt = attempt
        self._ledger = ledger
        self._usage = Usage()
        self._settled: Ticket | None = None
        self._opened = Ticket()
        ledger.put(Write(attempt, self._usage, opening=True, tickets=[self._opened]))

    @property
    def usage(self) -> Usage:
        """What was settled, or else the newest totals that were observed."""
        return self._usage

    @property
    def settled(self) -> bool:
        """Whether the entry has its settlement; whether that is durable, `settle` tells."""
        return self._settled is not None

    async def opened(self) -> None:
        """Returns when the opening entry is durable; raises `StorageUnavailable` where it is not."""
        await self._opened.wait()

    def observe(self, usage: Usage) -> None:
        """The newest totals. They are checkpointed in the background; after the settlement, ignored."""
        if self._settled is None and usage != self._usage:
            self._usage = usage
            self._ledger.changed(self)

    async def settle(
        self,
        outcome: Outcome,
        usage: Usage | None = None,
        timings: Timings | None = None,
        status: int | None = None,
    ) -> None:
        """Returns when the settlement is durable. ``usage`` is what was observed where it is not given.

        The first settlement stands: a later call waits for that one. Cancelling the wait undoes nothing.
        Raises `StorageUnavailable` where the storage fails; the settlement is kept and tried again until
        the ledger is closed.
        """
        await self._settle(outcome, usage, timings, status).wait()

    def finish(self, outcome: Outcome, timings: Timings | None = None, status: int | None = None) -> None:
        """As `settle` with what was observed, without waiting."""
        self._settle(outcome, None, timings, status)

    def _settle(
        self, outcome: Outcome, usage: Usage | None, timings: Timings | None, status: int | None
    ) -> Ticket:
        if self._settled is None:
            if usage is not None:
                self._usage = usage
            self._settled = ticket = Ticket()
            settlement = Settlement(outcome, time.time_ns() // 1_000_000, timings, status)
            self._ledger.put(Write(self.attempt, self._usage, settlement, tickets=[ticket]))
            self._ledger.settled(self)
        return self._settled


def open_ledger(url: str, database: AsyncEngine) -> Ledger:
    """The ledger in the database behind ``url``, to be entered on the event loop that runs now.

    On a file of SQLite a thread writes with a connection of its own; anything else is written through
    ``database``.
    """
    parsed = make_url(url)
    path = parsed.database
    if parsed.get_backend_name() == "sqlite" and path and path != ":memory:" and not path.startswith("file:"):
        return Ledger(SqliteWriter(path))
    return Ledger(SqlWriter(database))
