"""What an installation has before it knows of service accounts is there afterwards, under the same ids."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from gateway.storage.database import migrate, open_database
from tenants.secrets import digest
from tenants.store import Tenants

PEPPER = b"p" * 32
SECRET = "sk-" + "a" * 48
MIGRATIONS = Path(__file__).parents[3] / "gateway" / "storage" / "migrations"


def _run(connection: Connection, revision: str, *, up: bool) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    (command.upgrade if up else command.downgrade)(config, revision)


def _insert(connection: Connection) -> None:
    connection.execute(text("INSERT INTO organizations VALUES ('org-1', 'acme', 'Acme', 1000)"))
    connection.execute(text("INSERT INTO projects VALUES ('proj_1', 'org-1', 'search', 2000, NULL)"))
    keys = (("key_1", "project", SECRET, None), ("key_2", "project", "gone", 9000))
    for key_id, kind, secret, revoked_ms in keys:
        connection.execute(
            text(
                "INSERT INTO api_keys (id, kind, organization_id, project_id, name, prefix, digest, scopes, "
                "created_ms, revoked_ms) VALUES "
                "(:id, :kind, 'org-1', 'proj_1', 'robot', 'sk-', :digest, 'all', 3000, :revoked)"
            ),
            {"id": key_id, "kind": kind, "digest": digest(PEPPER, secret), "revoked": revoked_ms},
        )


async def test_keys_keep_working_and_get_accounts(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'torpor.db'}"
    database = open_database(url)
    try:
        async with database.begin() as connection:
            await connection.run_sync(_run, "0004", up=True)
            await connection.run_sync(_insert)
        await migrate(url)
        store = Tenants.of(database, PEPPER)
        assert (await store.credentials.authenticate(SECRET)).key_id == "key_1"
        (key,) = (await store.keys.listed("org-1")).items
        assert key.service_account is not None
        assert (key.service_account.id, key.service_account.name) == ("svc_1", "robot")
        assert (await store.service_accounts.listed("org-1", "proj_1")).items == [key.service_account]
        async with database.begin() as connection:
            await connection.run_sync(_run, "0004", up=False)
        async with database.connect() as connection:
            names = (await connection.execute(text("SELECT id FROM api_keys ORDER BY id"))).scalars().all()
        assert names == ["key_1", "key_2"]
    finally:
        await database.dispose()
