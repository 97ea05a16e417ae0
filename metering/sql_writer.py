"""The ledger's writer for every database but SQLite: a task on the event loop, group commit."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy import update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.backlog import Backlog
from metering.entries import COLUMNS, Write, upsert
from metering.errors import InvalidEntry, MeteringError, StorageUnavailable
from metering.tables import ledger_entries
from metering.tickets import Ticket
from metering.types import Outcome
from metering.writers import MAX_BATCH, MAX_QUEUED, RETRY_S

_log = logging.getLogger("torpor.ledger")

_Storage = (DBAPIError, PoolTimeoutError, OSError)


class SqlWriter:
    """Writes through SQLAlchemy to a database that the caller owns."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database
        self._statement = upsert(database.dialect.name)
        self._queued: list[Write] = []
        self._wake = asyncio.Event()
        self._backlog = Backlog()
        self._pending = 0
        self._broken = False
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """As `LedgerWriter.start`."""
        statement = (
            update(ledger_entries)
            .where(ledger_entries.c.outcome.is_(None))
            .values(outcome=Outcome.INTERRUPTED.value, settled_ms=time.time_ns() // 1_000_000)
        )
        try:
            async with self._database.begin() as connection:
                interrupted = (await connection.execute(statement)).rowcount
        except _Storage as error:
            raise StorageUnavailable("the ledger cannot be opened") from error
        self._task = asyncio.create_task(self._run())
        return interrupted

    def put(self, write: Write) -> None:
        """As `LedgerWriter.put`."""
        self._pending += len(write.tickets)
        self._queued.append(write)
        self._wake.set()

    @property
    def accepts(self) -> bool:
        """As `LedgerWriter.accepts`."""
        return not self._broken and self._pending < MAX_QUEUED

    @property
    def waiting(self) -> int:
        """As `LedgerWriter.waiting`."""
        return self._pending

    async def close(self) -> None:
        """As `LedgerWriter.close`."""
        if self._task is not None:
            self._closing = True
            self._wake.set()
            await self._task
            self._task = None

    async def _run(self) -> None:
        try:
            while not self._closing or self._queued:
                await self._wait()
                self._backlog.add(self._queued[:MAX_BATCH])
                del self._queued[:MAX_BATCH]
                if self._backlog.writes:
                    await self._commit()
            self._backlog.report_lost()
        finally:
            self._broken = True
            self._resolve(self._backlog.failed(), StorageUnavailable("the ledger is closed"))

    async def _wait(self) -> None:
        """Until something is queued, or a failed commit is due again."""
        if self._queued:
            return
        self._wake.clear()
        if not self._backlog.writes:
            await self._wake.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await self._wake.wait()

    async def _commit(self) -> None:
        writes = self._backlog.pending()
        try:
            await self._write(writes)
        except _Storage as error:
            if isinstance(error, DataError | IntegrityError):
                await self._commit_each(writes)
            else:
                self._fail(error)
        except (StatementError, OverflowError, TypeError, ValueError):
            await self._commit_each(writes)
        else:
            self._succeed(writes)

    async def _commit_each(self, writes: list[Write]) -> None:
        """Sorts out the entry that the database refuses, so that it takes no other with it."""
        for write in writes:
            try:
                await self._write([write])
            except (DataError, IntegrityError, OverflowError, TypeError, ValueError):
                self._refuse(write)
            except _Storage as error:
                self._fail(error)
                return
            except StatementError:
                self._refuse(write)
            else:
                self._succeed([write])

    def _refuse(self, write: Write) -> None:
        _log.exception("a ledger entry cannot be stored: %s", write.attempt.id)
        self._resolve(self._backlog.done([write]), InvalidEntry("the entry cannot be stored"))

    async def _write(self, writes: Sequence[Write]) -> None:
        rows = [dict(zip(COLUMNS, write.row(), strict=True)) for write in writes]
        async with self._database.begin() as connection:
            await connection.execute(self._statement, rows)

    def _succeed(self, writes: Sequence[Write]) -> None:
        if self._broken:
            _log.warning("the ledger can be written again")
        self._broken = False
        self._resolve(self._backlog.done(writes), None)

    def _fail(self, error: Exception) -> None:
        """Refuses new entries as long as there is something that is tried again, and so shows recovery."""
        if not self._broken:
            _log.error("the ledger cannot be written: %s", type(error).__name__)
        unavailable = StorageUnavailable("the ledger cannot be written")
        unavailable.__cause__ = error
        tickets = self._backlog.failed()
        self._broken = bool(self._backlog.writes)
        self._resolve(tickets, unavailable)

    def _resolve(self, tickets: list[Ticket], error: MeteringError | None) -> None:
        self._pending -= len(tickets)
        for ticket in tickets:
            ticket.resolve(error)
