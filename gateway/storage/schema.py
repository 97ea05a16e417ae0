"""What Alembic knows of the schema. Imported only where the schema is not known to be the newest."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from gateway.storage.errors import DatabaseError

_MIGRATIONS = Path(__file__).parent / "migrations"


def revisions(connection: Connection) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The schema's revisions in the database and in the code; the database's are all known to the code."""
    scripts = ScriptDirectory(str(_MIGRATIONS))
    present = MigrationContext.configure(connection).get_current_heads()
    for revision in present:
        _check_known(scripts, revision)
    return present, tuple(scripts.get_heads())


def upgrade(connection: Connection) -> None:
    """Brings the schema to the newest revision, in the transaction that the connection is in."""
    present, newest = revisions(connection)
    if present == newest:
        return
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _check_known(scripts: ScriptDirectory, revision: str) -> None:
    try:
        script = scripts.get_revision(revision)
    except (CommandError, ResolutionError):
        script = None
    if script is None:
        raise DatabaseError(
            f"the database has the schema {revision!r}, which this version of Torpor does not know; "
            "it was used with a later version: install that one"
        )
