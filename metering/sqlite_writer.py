"""The ledger's writer for SQLite: one thread, the standard library's sqlite3, group commit.

Between the event loop and this thread the interpreter's lock changes hands at every call into SQLite, and
on a busy loop each change may take the interpreter's whole switch interval (5 ms). So a batch is written
with few calls: one statement inserts up to 64 rows.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from urllib.parse import quote

from sqlalchemy.dialects import sqlite

from metering.backlog import Backlog
from metering.entries import COLUMNS, Write, upsert
from metering.errors import InvalidEntry, MeteringError, StorageUnavailable
from metering.tickets import Ticket
from metering.types import Outcome
from metering.writers import MAX_BATCH, MAX_QUEUED, RETRY_S

_log = logging.getLogger("torpor.ledger")

BUSY_TIMEOUT_MS = 2_000
_GROUPS = (64, 16, 4, 1)
_INTERRUPT = "UPDATE ledger_entries SET outcome = ?, settled_ms = ? WHERE outcome IS NULL"
_UNSTORABLE = (
    OverflowError,
    TypeError,
    ValueError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)
"""The entry's own fault; every other error is the storage's."""


class SqliteWriter:
    """Writes to the file at ``path``, whose schema is in place."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._backlog = Backlog()
        self._thread: threading.Thread | None = None
        self._loop = asyncio.get_running_loop()
        self._pending = 0
        self._broken = False
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._statements = {size: _statement(size) for size in _GROUPS}

    async def start(self) -> int:
        """As `LedgerWriter.start`."""
        interrupted = await asyncio.to_thread(self._settle_interrupted)
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()
        return interrupted

    def put(self, write: Write) -> None:
        """As `LedgerWriter.put`."""
        self._pending += len(write.tickets)
        self._queue.put(write)

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
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _settle_interrupted(self) -> int:
        try:
            values = (Outcome.INTERRUPTED.value, time.time_ns() // 1_000_000)
            return self._connect().execute(_INTERRUPT, values).rowcount
        except sqlite3.Error as error:
            raise StorageUnavailable("the ledger cannot be opened") from error
        finally:
            self._disconnect()

    def _connect(self) -> sqlite3.Connection:
        """The connection of this thread; one is made where there is none. Never makes the file."""
        if self._connection is None:
            uri = f"file:{quote(self._path)}?mode=rw"
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=16)
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._file = self._identity()
        elif self._file != self._identity():
            raise sqlite3.OperationalError("the database file was replaced")
        return self._connection

    def _identity(self) -> tuple[int, int]:
        """SQLite would go on writing to a file that was moved away."""
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise sqlite3.OperationalError("the database file is gone") from error
        return found.st_dev, found.st_ino

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self) -> None:
        try:
            more = True
            while more:
                writes, more = self._next()
                self._backlog.add(writes)
                if self._backlog.writes:
                    self._commit()
            self._backlog.report_lost()
        finally:
            self._broken = True
            self._resolve(self._backlog.failed(), StorageUnavailable("the ledger is closed"))
            self._disconnect()

    def _next(self) -> tuple[list[Write], bool]:
        """What is queued, at least one write unless a failed commit is due again; and whether to go on."""
        writes: list[Write] = []
        try:
            write = self._queue.get(timeout=RETRY_S if self._backlog.writes else None)
            while write is not None:
                writes.append(write)
                if len(writes) == MAX_BATCH:
                    return writes, True
                write = self._queue.get_nowait()
        except queue.Empty:
            return writes, True
        return writes, False

    def _commit(self) -> None:
        writes = self._backlog.pending()
        try:
            self._write(writes)
        except _UNSTORABLE:
            self._commit_each(writes)
        except sqlite3.Error as error:
            self._fail(error)
        else:
            self._succeed(writes)

    def _commit_each(self, writes: list[Write]) -> None:
        """Sorts out the entry that the database refuses, so that it takes no other with it."""
        for write in writes:
            try:
                self._write([write])
            except _UNSTORABLE:
                _log.exception("a ledger entry cannot be stored: %s", write.attempt.id)
                self._resolve(self._backlog.done([write]), InvalidEntry("the entry cannot be stored"))
            except sqlite3.Error as error:
                self._fail(error)
                return
            else:
                self._succeed([write])

    def _write(self, writes: Sequence[Write]) -> None:
        rows = [write.row() for write in writes]
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            position = 0
            for size in _GROUPS:
                while len(rows) - position >= size:
                    values = [value for row in rows[position : position + size] for value in row]
                    connection.execute(self._statements[size], values)
                    position += size
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _succeed(self, writes: Sequence[Write]) -> None:
        if self._broken:
            _log.warning("the ledger can be written again")
        self._broken = False
        self._resolve(self._backlog.done(writes), None)

    def _fail(self, error: sqlite3.Error) -> None:
        """Refuses new entries as long as there is something that is tried again, and so shows recovery."""
        if not self._broken:
            _log.error("the ledger cannot be written: %s", error)
        self._disconnect()
        unavailable = StorageUnavailable("the ledger cannot be written")
        unavailable.__cause__ = error
        tickets = self._backlog.failed()
        self._broken = bool(self._backlog.writes)
        self._resolve(tickets, unavailable)

    def _resolve(self, tickets: list[Ticket], error: MeteringError | None) -> None:
        if tickets:
            self._loop.call_soon_threadsafe(self._resolved, tickets, error)

    def _resolved(self, tickets: list[Ticket], error: MeteringError | None) -> None:
        self._pending -= len(tickets)
        for ticket in tickets:
            ticket.resolve(error)


def _statement(rows: int) -> str:
    """The upsert of that many rows, in SQLite's own words."""
    one = "(" + ", ".join("?" * len(COLUMNS)) + ")"
    text = str(upsert("sqlite").compile(dialect=sqlite.dialect()))
    return text.replace(f"VALUES {one}", "VALUES " + ", ".join([one] * rows), 1)
