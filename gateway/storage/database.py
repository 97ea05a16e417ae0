"""Opens the database of an installation and brings its schema up to date.

The one place that opens a database; every other folder is handed one.
"""

import asyncio
import re
import sqlite3
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, MetaData, event, func, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from gateway.storage.errors import DatabaseError
from metering.tables import metadata as metering_metadata
from tenants.tables import metadata as tenants_metadata

_MIGRATIONS = Path(__file__).parent / "migrations"
_REVISION = re.compile(r'^revision\b[^=]*= "(\w+)"', re.MULTILINE)
_BUILDS_ON = re.compile(r'^down_revision\b[^=]*= "(\w+)"', re.MULTILINE)
_POOL = 4
_BUSY_TIMEOUT_MS = 5_000
_CONNECT_S = 10.0
_COMMAND_S = 30.0
"""A server that is there and says nothing would be waited for without end."""
_MIGRATING = 0x746F72706F72
"""PostgreSQL's advisory lock under which the schema is changed: ``torpor`` in ASCII."""
_PRAGMAS = (
    f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


def declared() -> list[MetaData]:
    """The tables of all folders, as their code declares them."""
    return [tenants_metadata, metering_metadata]


def open_database(url: str) -> AsyncEngine:
    """The database behind an SQLAlchemy URL with an async driver; nothing is connected yet.

    The caller disposes of it. Raises `DatabaseError` if the URL names no driver of this machine.
    """
    parsed = _parsed(url)
    options: dict[str, Any] = {"pool_size": _POOL, "max_overflow": _POOL, "pool_timeout": 10.0}
    if parsed.get_backend_name() != "sqlite":
        options["pool_pre_ping"] = True
    if parsed.get_driver_name() == "asyncpg":
        options["connect_args"] = {"timeout": _CONNECT_S, "command_timeout": _COMMAND_S}
    engine = _create(parsed, options)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        if parsed.database and parsed.database != ":memory:" and not parsed.database.startswith("file:"):
            _FileWatch(Path(parsed.database)).attach(engine)
    return engine


_THREAD_S = 5.0


async def migrate(url: str) -> None:
    """Brings the schema to the newest revision; nothing happens where it is there already.

    On SQLite and PostgreSQL all of it happens in one transaction, one after another where several begin.
    Raises `DatabaseError` where the schema is of a later version of Torpor.
    """
    engine, before = _create(_parsed(url), {}), set(threading.enumerate())
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        event.listen(engine.sync_engine, "connect", _leave_transactions_to_us)
        event.listen(engine.sync_engine, "begin", _begin_immediately)
    try:
        async with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                await connection.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
            await connection.run_sync(_bring_up)
    finally:
        await engine.dispose()
        # aiosqlite's thread has yet to tell the loop that it ends, where the file cannot be opened.
        for thread in set(threading.enumerate()) - before:
            if thread.name.endswith("(_connection_worker_thread)"):
                await asyncio.to_thread(thread.join, _THREAD_S)


async def is_migrated(url: str) -> bool | None:
    """Whether the schema is at the newest revision, ``None`` where there is no schema yet.

    Only reads: an SQLite file that is not there is not made. Raises `DatabaseError` as `migrate` does.
    """
    parsed = _parsed(url)
    engine = _create(parsed, {})
    try:
        if engine.dialect.name == "sqlite" and not _is_file(parsed):
            return None
        async with engine.connect() as connection:
            return await connection.run_sync(_state)
    finally:
        await engine.dispose()


def _is_file(url: URL) -> bool:
    return url.database is not None and Path(url.database).is_file()


def _bring_up(connection: Connection) -> None:
    if _is_newest(connection):
        return
    # Alembic takes longer to import than all else that the gateway does at its start.
    from gateway.storage import schema

    schema.upgrade(connection)


def _is_newest(connection: Connection) -> bool:
    """Whether nothing is to be done, or said, about the schema."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    present = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    return list(present) == newest_revisions()


def newest_revisions() -> list[str]:
    """The newest revisions of the migrations in this package."""
    texts = [path.read_text() for path in (_MIGRATIONS / "versions").glob("*.py")]
    revisions = {match[1] for each in texts if (match := _REVISION.search(each))}
    return sorted(revisions - {match[1] for each in texts if (match := _BUILDS_ON.search(each))})


def _state(connection: Connection) -> bool | None:
    if _is_newest(connection):
        return True
    from gateway.storage import schema

    present, _ = schema.revisions(connection)
    return False if present else None


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError:
        raise DatabaseError(
            "[storage] database is not a database URL, such as sqlite+aiosqlite:///FILE"
        ) from None


def _create(url: URL, options: dict[str, Any]) -> AsyncEngine:
    try:
        return create_async_engine(url, **options)
    except ModuleNotFoundError as error:
        raise DatabaseError(
            f"[storage] database needs the Python package {error.name!r}, which is not installed"
        ) from None
    except NoSuchModuleError:
        raise DatabaseError(
            f"[storage] database names an unknown kind of database: {url.drivername}"
        ) from None
    except InvalidRequestError:
        raise DatabaseError(
            f"[storage] database names the driver {url.drivername}, which is not asynchronous; "
            "use sqlite+aiosqlite or postgresql+asyncpg"
        ) from None


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


class _FileWatch:
    """Fail the next statement if the file was moved away or replaced; no empty file is made for it.

    SQLite itself would go on working on the file that no longer has a name.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._met = False

    def attach(self, engine: AsyncEngine) -> None:
        """From now on, where a connection is made or taken from the pool."""
        event.listen(engine.sync_engine, "do_connect", self._before_connect)
        event.listen(engine.sync_engine, "connect", self._on_connect)
        event.listen(engine.sync_engine, "checkout", self._on_checkout)

    def _identity(self) -> tuple[int, int]:
        try:
            status = self._file.stat()
        except OSError as error:
            raise sqlite3.OperationalError("the database file is gone") from error
        return status.st_dev, status.st_ino

    def _before_connect(self, *_: Any) -> None:
        if self._met:
            self._identity()

    def _on_connect(self, _connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["file"] = self._identity()
        self._met = True

    def _on_checkout(self, _connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        if record.info.get("file") != self._identity():
            raise DisconnectionError("the database file was replaced")


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    """The driver would commit each change of the schema by itself."""
    connection.isolation_level = None


def _begin_immediately(connection: Connection) -> None:
    """Two that migrate at once go one after the other."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
