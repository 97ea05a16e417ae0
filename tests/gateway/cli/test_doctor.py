"""What ``torpor doctor`` says of the database, and that it only looks."""

import sqlite3
from pathlib import Path

from gateway.cli.common import Installation, run
from gateway.cli.doctor import _database
from gateway.storage.database import migrate


def _installation(folder: Path) -> Installation:
    (folder / "torpor.toml").write_text('[storage]\ndata_dir = "data"\n')
    return Installation.load(folder / "torpor.toml")


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    installation = _installation(tmp_path)
    finding = _database(installation)
    assert (finding.level, finding.what) == ("lacks", "sqlite: not made yet")
    assert not installation.data.path.exists()


async def _migrated(installation: Installation) -> None:
    installation.data.create()
    await migrate(installation.config.storage.database_url())


def test_an_earlier_schema_is_told_and_left_alone(tmp_path: Path) -> None:
    installation = _installation(tmp_path)
    run(lambda: _migrated(installation))
    assert _database(installation).level == "ok"
    file = installation.data.path / "torpor.db"
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    before = file.read_bytes()
    finding = _database(installation)
    assert finding.level == "lacks"
    assert "earlier version" in finding.what
    assert "start the gateway" in finding.advice
    assert file.read_bytes() == before


def test_a_database_that_cannot_be_reached_fails(tmp_path: Path) -> None:
    (tmp_path / "torpor.toml").write_text('[storage]\ndatabase = "postgresql+nothing://nowhere/x"\n')
    assert _database(Installation.load(tmp_path / "torpor.toml")).level == "fails"
