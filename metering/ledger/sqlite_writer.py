"""Brings rows into SQLite: one thread, the standard library's sqlite3, large commits.

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
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from sqlalchemy import Insert
from sqlalchemy.dialects import sqlite

from metering.ledger.backlog import Backlog, report_lost
from metering.ledger.entries import COLUMNS, OUTCOME, upsert
from metering.ledger.journal import Group, Row
from metering.ledger.rollups import ROLLUPS, addition, increments, values_of
from metering.ledger.writer import RETRY_S, Listener
from tenants.errors import StorageUnavailable

_logger = logging.getLogger("torpor.ledger")

BUSY_TIMEOUT_MS = 2_000
_GROUPS = (64, 16, 4, 1)
_OPEN = (
    f"SELECT {', '.join(COLUMNS)} FROM ledger_entries WHERE outcome IS NULL AND (owner = ? OR owner IS NULL)"  # noqa: S608
)
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
    """Writes to the file at ``path``, whose schema is in place.

    It has many attributes because its thread, the event loop and the open transaction share its state.
    """

    def __init__(self, path: str, *, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> None:
        self._path = path
        self._busy_timeout_ms = busy_timeout_ms
        self._queue: queue.SimpleQueue[Group | int | None] = queue.SimpleQueue()
        self._backlog = Backlog()
        self._hurry = -1
        self._ending = False
        self._thread: threading.Thread | None = None
        self._loop = asyncio.get_running_loop()
        self._listener: Listener | None = None
        self._broken = False
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        opening = upsert("sqlite")
        self._openings = _Statements(opening, COLUMNS)
        self._settlings = _Statements(opening, COLUMNS, " RETURNING id")
        self._additions = [
            _Statements(addition(table, "sqlite"), [column.name for column in table.columns])
            for table, _ in ROLLUPS
        ]

    async def store(self, rows: Sequence[Row]) -> None:
        """As `DatabaseWriter.store`."""
        await asyncio.to_thread(self._store_now, rows)

    async def open_rows(self, owner: str) -> list[Row]:
        """As `DatabaseWriter.open_rows`."""
        return await asyncio.to_thread(self._read_open, owner)

    def start(self, listener: Listener) -> None:
        """As `DatabaseWriter.start`."""
        self._listener = listener
        self._thread = threading.Thread(target=self._run, name="ledger-database", daemon=True)
        self._thread.start()

    def put(self, group: Group) -> None:
        """As `DatabaseWriter.put`."""
        self._queue.put(group)

    def hurry(self, number: int) -> None:
        """As `DatabaseWriter.hurry`."""
        self._queue.put(number)

    async def close(self) -> int:
        """As `DatabaseWriter.close`."""
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        return len(self._backlog.rows)

    def _store_now(self, rows: Sequence[Row]) -> None:
        try:
            self._write_sorted(list(rows))
        except sqlite3.Error as error:
            raise StorageUnavailable("the ledger cannot be opened") from error
        finally:
            self._disconnect()

    def _read_open(self, owner: str) -> list[Row]:
        try:
            rows = self._connect().execute(_OPEN, (owner,)).fetchall()
        except sqlite3.Error as error:
            raise StorageUnavailable("the ledger cannot be opened") from error
        finally:
            self._disconnect()
        booleans = [COLUMNS.index("batch"), COLUMNS.index("estimated")]
        return [
            tuple(bool(value) if index in booleans else value for index, value in enumerate(row))
            for row in rows
        ]

    def _connect(self) -> sqlite3.Connection:
        """The connection of this thread, opened if need be. Never creates the file."""
        if self._connection is None:
            uri = f"file:{quote(self._path)}?mode=rw"
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=32)
            self._connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout_ms}")
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._file = self._identity()
        elif self._file != self._identity():
            raise sqlite3.OperationalError("the database file was replaced")
        return self._connection

    def _identity(self) -> tuple[int, int]:
        """SQLite would go on writing to a file that was moved away."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise sqlite3.OperationalError("the database file is gone") from error
        return status.st_dev, status.st_ino

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self) -> None:
        try:
            while not self._ending:
                self._take()
                if self._backlog.since is not None:
                    self._commit()
        finally:
            self._disconnect()

    def _take(self) -> None:
        """Wait until the backlog is due, and merge what arrives until then."""
        backlog = self._backlog
        retrying = self._broken
        while not self._ending:
            wait_s: float | None = None
            if backlog.since is not None:
                wait_s = RETRY_S if retrying else backlog.due_in(self._hurry)
                if wait_s <= 0:
                    return
            try:
                item = self._queue.get(timeout=wait_s)
            except queue.Empty:
                return
            if item is None:
                self._ending = True
            elif isinstance(item, int):
                self._hurry, retrying = max(self._hurry, item), False
            else:
                backlog.add(item)

    def _commit(self) -> None:
        try:
            self._write_sorted(list(self._backlog.rows.values()))
        except sqlite3.Error as error:
            self._fail(error)
            return
        if self._broken:
            _logger.warning("the database of the ledger can be written again")
        self._broken = False
        number = self._backlog.clear()
        if self._listener is not None:
            self._tell(self._listener.applied, number)

    def _write_sorted(self, rows: list[Row]) -> None:
        """Write rows, without those that the database refuses: a bad entry does not fail the others."""
        try:
            self._write(rows)
        except _UNSTORABLE as error:
            if len(rows) == 1:
                _logger.warning("%s", error)
                report_lost(rows)
                self._backlog.drop(rows[0])
                return
            middle = len(rows) // 2
            self._write_sorted(rows[:middle])
            self._write_sorted(rows[middle:])

    def _write(self, rows: Sequence[Row]) -> None:
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._openings.execute(connection, [row for row in rows if row[OUTCOME] is None])
            settling = {row[0]: row for row in rows if row[OUTCOME] is not None}
            settled = self._settlings.execute(connection, list(settling.values()))
            sums = increments(settling[key] for (key,) in settled)
            for statements, rollup in zip(self._additions, sums, strict=True):
                statements.execute(connection, values_of(rollup))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _fail(self, error: sqlite3.Error) -> None:
        if not self._broken:
            _logger.error("the database of the ledger cannot be written: %s", error)
        self._broken = True
        self._disconnect()
        if self._listener is not None:
            self._tell(self._listener.failed)

    def _tell(self, callback: Any, *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: no caller waits
            self._loop.call_soon_threadsafe(callback, *arguments)


class _Statements:
    """One statement, for one row and for groups of rows, in SQLite's own words."""

    def __init__(self, statement: Insert, columns: Sequence[str], ending: str = "") -> None:
        row = "(" + ", ".join("?" * len(columns)) + ")"
        text = str(statement.values(dict.fromkeys(columns)).compile(dialect=sqlite.dialect()))
        if f"VALUES {row}" not in text:
            raise RuntimeError(f"SQLAlchemy compiled an insert without {row}: {text}")
        self._returns = bool(ending)
        self._texts = {
            size: text.replace(f"VALUES {row}", "VALUES " + ", ".join([row] * size), 1) + ending
            for size in _GROUPS
        }

    def execute(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> list[Any]:
        """Write the rows; what the statement returns, of all of them."""
        returned: list[Any] = []
        position = 0
        for size, text in self._texts.items():
            while len(rows) - position >= size:
                values = [value for row in rows[position : position + size] for value in row]
                cursor = connection.execute(text, values)
                if self._returns:
                    returned += cursor.fetchall()
                position += size
        return returned
