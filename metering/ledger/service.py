"""The ledger: every attempt is opened once and settled once, durably, whatever happens in between."""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.ledger.backlog import Backlog
from metering.ledger.durability import Durability
from metering.ledger.entries import Settlement, Write, attempt_of, interrupted, usage_of
from metering.ledger.journal import Journal
from metering.ledger.recorder import Recorder
from metering.ledger.sql_writer import SqlWriter
from metering.ledger.sqlite_writer import SqliteWriter
from metering.ledger.writer import MAX_BATCH, MAX_QUEUED, DatabaseWriter
from metering.prices import PriceList
from metering.types import Attempt, Outcome, Timings, Usage
from tenants.errors import StorageUnavailable

_logger = logging.getLogger("torpor.ledger")

CHECKPOINT_S = 0.2
"""Meters that changed are checkpointed so often; 0.25 s is promised."""
FRESH_S = 2.0
"""A report waits so long for the database to have what the journal has."""
_MOST_JOURNALS = 64


class Ledger:
    """Opens meters for attempts. An async context manager, whose exit makes everything durable.

    ``folder`` has the journals of the processes that share it, each in a folder of its own. Entering takes
    one that no process holds and brings what it has, and what other ended processes left, into the database:
    entries that were open are settled as ``interrupted``. It raises `StorageUnavailable` if the database
    or the folder cannot be read and written.
    """

    def __init__(
        self,
        writer: DatabaseWriter,
        folder: Path,
        prices: PriceList | None = None,
        *,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._database = writer
        self._max_queued = max_queued
        self._folder = folder
        self._prices = PriceList() if prices is None else prices
        self._recorder: Recorder | None = None
        self._open: dict[str, Meter] = {}
        self._changed: dict[str, Meter] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        mine: Journal | None = None
        try:
            for journal in _unheld(self._folder):
                last = await self._recover(journal)
                await asyncio.to_thread(journal.restart, last)
                if mine is None:
                    mine = journal
                else:
                    journal.close(empty=True)
            if mine is None:
                raise StorageUnavailable("there are too many processes with journals in one folder")
            self._recorder = Recorder(mine, self._database, self._max_queued)
        finally:
            if mine is not None and self._recorder is None:
                mine.close(empty=False)
        self._recorder.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for meter in list(self._open.values()):
            meter.finish(Outcome.INTERRUPTED)
        recorder, self._recorder = self._recorder, None
        if self._timer is not None:
            self._timer.cancel()
        if recorder is not None:
            await recorder.close()

    @property
    def owner(self) -> str:
        """The id under which the database has what this process alone writes."""
        return "" if self._recorder is None else self._recorder.owner

    @property
    def accepts(self) -> bool:
        """Whether an entry can be opened now."""
        return self._recorder is not None and self._recorder.accepts

    @property
    def backlog(self) -> int:
        """The number of writes that callers wait for."""
        return 0 if self._recorder is None else self._recorder.waiting

    @property
    def lags_s(self) -> Mapping[str, float]:
        """How long the oldest write waits, in seconds: for the ``journal``, and then for the ``database``."""
        recorder = self._recorder
        if recorder is None:
            return {}
        return {"journal": recorder.journal_lag_s, "database": recorder.database_lag_s}

    @property
    def journal_bytes(self) -> int:
        """What of the journal is taken by what the database may not have."""
        return 0 if self._recorder is None else self._recorder.journal_bytes

    @property
    def open_entries(self) -> int:
        """Meters that are not settled."""
        return len(self._open)

    async def applied(self) -> bool:
        """Return when the database has all that was durable before; ``False`` where it is away, or late."""
        return self._recorder is not None and await self._recorder.applied(FRESH_S)

    def open(self, attempt: Attempt, *, patient: bool = False) -> "Meter":
        """Queues the opening entry and returns its meter at once.

        ``patient``: of an attempt that may be over soon, and of which nothing leaves before its settlement is
        durable. The opening waits up to `PATIENCE_S` for the settlement, and is one write with it then.

        Raises `StorageUnavailable` where the ledger is closed, cannot be written, or its queue or its journal
        is full.
        """
        if not self.accepts:
            raise StorageUnavailable("the ledger takes no entries now")
        meter = self._open[attempt.id] = Meter(self, attempt, patient=patient)
        return meter

    def put(self, write: Write) -> None:
        """Queues a write of one of the ledger's meters; once the ledger is closed, it fails."""
        if self._recorder is not None:
            self._recorder.put(write)
            return
        for ticket in write.tickets:
            ticket.resolve(StorageUnavailable("the ledger is closed"))

    def defer(self, write: Write) -> None:
        """Keep back an opening, until its settlement or for `PATIENCE_S`. The ledger is open."""
        if self._recorder is not None:
            self._recorder.defer(write)

    def undefer(self, attempt_id: str) -> Write | None:
        """The opening, if it still waits: what it was to tell is the caller's to put."""
        return None if self._recorder is None else self._recorder.undefer(attempt_id)

    def changed(self, meter: "Meter") -> None:
        """The meter's usage is to be checkpointed when it is time."""
        self._changed[meter.attempt.id] = meter
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHECKPOINT_S, self._checkpoint)

    def settlement(
        self, attempt: Attempt, usage: Usage, outcome: Outcome, timings: Timings | None, status: int | None
    ) -> Settlement:
        """The settlement of an attempt that ends now, at the price of the day on which it began."""
        engine_ms = 0
        if timings is not None and timings.total_ms is not None and usage != Usage():
            engine_ms = max(0, round(timings.total_ms - (timings.queue_ms or 0)))
        price = self._prices.price(attempt.model, attempt.adapter, attempt.started_at)
        now_ms = time.time_ns() // 1_000_000
        return Settlement(outcome, now_ms, timings, status, price.costs(usage, engine_ms))

    def settled(self, meter: "Meter") -> None:
        """The meter needs nothing more."""
        self._open.pop(meter.attempt.id, None)
        self._changed.pop(meter.attempt.id, None)

    def _checkpoint(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, {}
        for meter in changed.values():
            opening = self.undefer(meter.attempt.id)
            self.put(Write(meter.attempt, meter.usage, tickets=[] if opening is None else opening.tickets))

    async def _recover(self, journal: Journal) -> int:
        """Brings the journal into the database and settles what is open. The number of its last group."""
        backlog = Backlog()
        for group in await asyncio.to_thread(lambda: list(journal.replay())):
            backlog.add(group)
        rows = list(backlog.rows.values())
        for start in range(0, len(rows), MAX_BATCH):
            await self._database.store(rows[start : start + MAX_BATCH])
        left = await self._database.open_rows(journal.owner)
        now_ms = time.time_ns() // 1_000_000
        settled = []
        for row in left:
            attempt = attempt_of(row)
            price = self._prices.price(attempt.model, attempt.adapter, attempt.started_at)
            settled.append(interrupted(row, now_ms, price.costs(usage_of(row))))
        for start in range(0, len(settled), MAX_BATCH):
            await self._database.store(settled[start : start + MAX_BATCH])
        if settled:
            _logger.warning("%d entries were left open by a crash; settled as interrupted", len(settled))
        return backlog.number


def _unheld(folder: Path) -> Iterator[Journal]:
    """The first journal that no process holds, and all others whose process has ended."""
    any_left = False
    for number in range(_MOST_JOURNALS):
        path = folder / str(number)
        if any_left and not path.exists():
            continue
        journal = Journal(path)
        if journal.claim():
            any_left = True
            yield journal


class Meter:
    """The entry of one attempt: observed while it goes on, settled once."""

    __slots__ = ("_ledger", "_opened", "_settled", "_usage", "attempt")

    def __init__(self, ledger: Ledger, attempt: Attempt, *, patient: bool = False) -> None:
        self.attempt = attempt
        self._ledger = ledger
        self._usage = Usage()
        self._settled: Durability | None = None
        self._opened = Durability()
        opening = Write(attempt, self._usage, tickets=[self._opened])
        if patient:
            ledger.defer(opening)
        else:
            ledger.put(opening)

    @property
    def usage(self) -> Usage:
        """What was settled, or else the newest totals that were observed."""
        return self._usage

    @property
    def settled(self) -> bool:
        """Whether the entry has its settlement; whether that is durable, `settle` tells."""
        return self._settled is not None

    async def opened(self) -> None:
        """Return when the opening entry is durable; raises `StorageUnavailable` where it is not."""
        waiting = self._ledger.undefer(self.attempt.id)
        if waiting is not None:
            self._ledger.put(waiting)
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
        """Return when the settlement is durable. ``usage`` is what was observed where it is not given.

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
    ) -> Durability:
        if self._settled is None:
            if usage is not None:
                self._usage = usage
            self._settled = ticket = Durability()
            settlement = self._ledger.settlement(self.attempt, self._usage, outcome, timings, status)
            opening = self._ledger.undefer(self.attempt.id)
            tickets = [ticket] if opening is None else [*opening.tickets, ticket]
            self._ledger.put(Write(self.attempt, self._usage, settlement, tickets))
            self._ledger.settled(self)
        return self._settled


def open_ledger(url: str, database: AsyncEngine, folder: Path, prices: PriceList | None = None) -> Ledger:
    """The ledger in the database behind ``url``, to be entered on the event loop that runs now.

    ``folder`` is for its journals. Into a file of SQLite a thread writes with a connection of its own;
    anything else is written through ``database``.
    """
    parsed = make_url(url)
    path = parsed.database
    if parsed.get_backend_name() == "sqlite" and path and path != ":memory:" and not path.startswith("file:"):
        return Ledger(SqliteWriter(path), folder, prices)
    return Ledger(SqlWriter(database), folder, prices)
