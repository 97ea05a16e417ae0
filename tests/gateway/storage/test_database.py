"""The schema that the migrations make, and what cannot be opened."""

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import gateway.storage.migrations
from gateway.storage.database import declared, is_migrated, migrate, newest_revisions, open_database
from gateway.storage.errors import DatabaseError


def _url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'torpor.db'}"


async def test_migrated_schema_is_the_declared_one(tmp_path: Path) -> None:
    await migrate(_url(tmp_path))
    database = open_database(_url(tmp_path))
    try:
        async with database.connect() as connection:
            assert await connection.run_sync(_differences) == []
    finally:
        await database.dispose()


def _differences(connection: Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": True}
    context = MigrationContext.configure(connection, opts=options)
    return list(compare_metadata(context, declared()))  # type: ignore[arg-type]


async def test_a_missing_column_would_be_noticed(tmp_path: Path) -> None:
    await migrate(_url(tmp_path))
    with sqlite3.connect(tmp_path / "torpor.db") as connection:
        connection.execute("ALTER TABLE projects DROP COLUMN archived_ms")
    connection.close()
    database = open_database(_url(tmp_path))
    try:
        async with database.connect() as checked:
            assert len(await checked.run_sync(_differences)) == 1
    finally:
        await database.dispose()


async def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    await migrate(_url(tmp_path))
    before = _dump(tmp_path / "torpor.db")
    await migrate(_url(tmp_path))
    assert _dump(tmp_path / "torpor.db") == before


def _dump(file: Path) -> list[str]:
    connection = sqlite3.connect(file)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


async def test_schema_of_a_later_version_is_refused(tmp_path: Path) -> None:
    await migrate(_url(tmp_path))
    with sqlite3.connect(tmp_path / "torpor.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = _dump(tmp_path / "torpor.db")
    for look in (migrate, is_migrated):
        with pytest.raises(DatabaseError, match="'9999', which this version of Torpor does not know"):
            await look(_url(tmp_path))
    assert _dump(tmp_path / "torpor.db") == before


async def test_looking_at_the_schema_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "torpor.db"
    assert await is_migrated(_url(tmp_path)) is None
    assert not file.exists(), "the file is not made"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE own (thing TEXT)")
    before = _dump(file)
    assert await is_migrated(_url(tmp_path)) is None
    assert _dump(file) == before
    connection.execute("DROP TABLE own")
    connection.close()
    await migrate(_url(tmp_path))
    assert await is_migrated(_url(tmp_path)) is True


async def test_a_schema_of_an_earlier_version_is_told(tmp_path: Path) -> None:
    await migrate(_url(tmp_path))
    with sqlite3.connect(tmp_path / "torpor.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    assert await is_migrated(_url(tmp_path)) is False


async def test_failed_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "torpor.db") as connection:
        connection.execute("CREATE TABLE api_keys (own TEXT)")
    connection.close()
    before = _dump(tmp_path / "torpor.db")
    with pytest.raises(Exception, match="api_keys already exists"):
        await migrate(_url(tmp_path))
    assert _dump(tmp_path / "torpor.db") == before


async def test_sqlite_is_durable_and_checks_references(tmp_path: Path) -> None:
    database = open_database(_url(tmp_path))
    try:
        async with database.connect() as connection:
            for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
                assert await connection.scalar(text(f"PRAGMA {pragma}")) == value
    finally:
        await database.dispose()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "is not a database URL"),
        ("sqlite:////tmp/x.db", "not asynchronous"),
        ("teradata+driver://host/x", "unknown kind of database"),
        ("mysql+aiomysql://user:hidden@host/x", "needs the Python package 'aiomysql'"),
    ],
)
def test_url_that_cannot_be_used_is_told_in_one_line(url: str, message: str) -> None:
    with pytest.raises(DatabaseError, match=message) as caught:
        open_database(url)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_newest_revision_is_known_without_alembic() -> None:
    scripts = ScriptDirectory(str(Path(gateway.storage.migrations.__file__).parent))
    assert newest_revisions() == list(scripts.get_heads())
