"""Brings rows into every database but a file of SQLite: a task on the event loop, through SQLAlchemy."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy import or_, select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from metering.ledger.backlog import Backlog, report_lost
from metering.ledger.entries import COLUMNS, OUTCOME, upsert
from metering.ledger.journal import Group, Row
from metering.ledger.rollups import ROLLUPS, addition, increments, values_of
from metering.ledger.writer import RETRY_S, Listener
from metering.tables import ledger_entries
from tenants.errors import StorageUnavailable

_logger = logging.getLogger("torpor.ledger")

_Storage = (DBAPIError, PoolTimeoutError, OSError)
_Refused = (OverflowError, TypeError, ValueError)


class SqlWriter:
    """Writes through SQLAlchemy to a database that the caller owns."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database
        dialect = database.dialect.name
        self._opening = upsert(dialect)
        self._settling = upsert(dialect).returning(ledger_entries.c.id)
        self._additions = [addition(table, dialect) for table, _ in ROLLUPS]
        self._queued: list[Group] = []
        self._wake = asyncio.Event()
        self._backlog = Backlog()
        self._hurry = -1
        self._broken = False
        self._closing = False
        self._listener: Listener | None = None
        self._task: asyncio.Task[None] | None = None

    async def store(self, rows: Sequence[Row]) -> None:
        """As `DatabaseWriter.store`."""
        try:
            await self._write_sorted(list(rows))
        except _Storage as error:
            raise StorageUnavailable("the ledger cannot be opened") from error

    async def open_rows(self, owner: str) -> list[Row]:
        """As `DatabaseWriter.open_rows`."""
        entry = ledger_entries.c
        mine = or_(entry.owner == owner, entry.owner.is_(None))
        statement = select(ledger_entries).where(entry.outcome.is_(None), mine)
        try:
            async with self._database.connect() as connection:
                return [tuple(row) for row in await connection.execute(statement)]
        except _Storage as error:
            raise StorageUnavailable("the ledger cannot be opened") from error

    def start(self, listener: Listener) -> None:
        """As `DatabaseWriter.start`."""
        self._listener = listener
        self._task = asyncio.create_task(self._run())

    def put(self, group: Group) -> None:
        """As `DatabaseWriter.put`."""
        self._queued.append(group)
        if self._backlog.since is None:
            self._wake.set()

    def hurry(self, number: int) -> None:
        """As `DatabaseWriter.hurry`."""
        self._hurry = max(self._hurry, number)
        self._wake.set()

    async def close(self) -> int:
        """As `DatabaseWriter.close`."""
        if self._task is not None:
            self._closing = True
            self._wake.set()
            await self._task
            self._task = None
        return len(self._backlog.rows)

    async def _run(self) -> None:
        while not self._closing or self._queued:
            await self._wait()
            queued, self._queued = self._queued, []
            for group in queued:
                self._backlog.add(group)
            if self._backlog.since is not None:
                if not self._closing and not self._broken and self._backlog.due_in(self._hurry) > 0:
                    continue
                await self._commit()

    async def _wait(self) -> None:
        """Until something is queued, or the backlog is due."""
        backlog, wait_s = self._backlog, None
        if backlog.since is not None:
            wait_s = RETRY_S if self._broken else backlog.due_in(self._hurry)
        elif self._queued or self._closing:
            wait_s = 0.0
        if wait_s is None or wait_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
        self._wake.clear()

    async def _commit(self) -> None:
        try:
            await self._write_sorted(list(self._backlog.rows.values()))
        except _Storage as error:
            if not self._broken:
                _logger.error("the database of the ledger cannot be written: %s", type(error).__name__)
            self._broken = True
            if self._listener is not None:
                self._listener.failed()
            return
        if self._broken:
            _logger.warning("the database of the ledger can be written again")
        self._broken = False
        number = self._backlog.clear()
        if self._listener is not None:
            self._listener.applied(number)

    async def _write_sorted(self, rows: list[Row]) -> None:
        """Write rows, without those that the database refuses: a bad entry does not fail the others."""
        try:
            await self._write(rows)
        except (StatementError, *_Refused) as error:
            if isinstance(error, DBAPIError) and not _refuses_values(error):
                raise
            if len(rows) == 1:
                report_lost(rows)
                self._backlog.drop(rows[0])
                return
            middle = len(rows) // 2
            await self._write_sorted(rows[:middle])
            await self._write_sorted(rows[middle:])

    async def _write(self, rows: Sequence[Row]) -> None:
        opening = [dict(zip(COLUMNS, row, strict=True)) for row in rows if row[OUTCOME] is None]
        settling = {row[0]: row for row in rows if row[OUTCOME] is not None}
        async with self._database.begin() as connection:
            if opening:
                await connection.execute(self._opening, opening)
            if settling:
                await self._settle(connection, settling)

    async def _settle(self, connection: AsyncConnection, settling: dict[str, Row]) -> None:
        values = [dict(zip(COLUMNS, row, strict=True)) for row in settling.values()]
        settled = await connection.scalars(self._settling, values)
        sums = increments(settling[key] for key in settled)
        for (table, _), statement, rollup in zip(ROLLUPS, self._additions, sums, strict=True):
            names = [column.name for column in table.columns]
            added = [dict(zip(names, row, strict=True)) for row in values_of(rollup)]
            if added:
                await connection.execute(statement, added)


def _refuses_values(error: DBAPIError) -> bool:
    """Whether the values can never be written. asyncpg tells by SQLSTATE, and raises a ValueError itself."""
    if isinstance(error, DataError | IntegrityError):
        return True
    state = getattr(error.orig, "sqlstate", None)
    cause = error.orig.__cause__ if error.orig is not None else None
    return (isinstance(state, str) and state[:2] in ("22", "23")) or isinstance(cause, ValueError)
