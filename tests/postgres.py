"""A PostgreSQL server of the tests' own: in a temporary folder, on a Unix socket there, gone at the end."""

import asyncio
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from gateway.storage.database import migrate

_INSTALLED = Path("/usr/lib/postgresql")
_START_S = 30.0
_SETTINGS = ("fsync=off", "full_page_writes=off", "listen_addresses=", "max_connections=200", "jit=off")
"""What is written need not survive the machine: the folder does not either."""
_numbers = itertools.count()


class PostgresServer:
    """The socket is in ``folder``. Databases are copies of one whose schema is the newest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._owner = _owner()
        self._process: subprocess.Popen[bytes] | None = None

    def initialize(self) -> None:
        """Make the server's data."""
        if self._owner is not None:
            shutil.chown(self.folder, self._owner)
        data = str(self.folder / "data")
        subprocess.run(
            [_program("initdb"), "-D", data, "-U", "torpor", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            user=self._owner,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
        )

    def start(self) -> None:
        """Start the server, and return when it takes connections."""
        settings = (*_SETTINGS, f"unix_socket_directories={self.folder}")
        options = [part for setting in settings for part in ("-c", setting)]
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", self.folder / "data", *options],
                user=self._owner,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                return asyncio.run(self.execute("SELECT 1"))
            except (OSError, asyncpg.CannotConnectNowError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        """End the server at once, also with clients connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_START_S)
            self._process = None

    def url(self, database: str) -> str:
        """As `gateway.storage.database.open_database` takes it."""
        return f"postgresql+asyncpg://torpor@/{database}?host={self.folder}"

    async def create(self, template: str = "migrated") -> str:
        """A new database's URL; of the template ``template0`` it is empty."""
        name = f"test_{next(_numbers)}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    async def execute(self, statement: str) -> None:
        """Run a statement for the server as a whole."""
        connection = await asyncpg.connect(host=str(self.folder), user="torpor", database="postgres")
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Fails where PostgreSQL is not installed: ``apt-get install postgresql`` brings it."""
    # Not under pytest's folder: the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="torpor-pg-"))
    server = PostgresServer(folder)
    try:
        server.initialize()
        server.start()
        asyncio.run(server.execute("CREATE DATABASE migrated"))
        asyncio.run(migrate(server.url("migrated")))
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _owner() -> str | None:
    """PostgreSQL refuses to run as root; its package brings a user for it."""
    return pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None


def _program(name: str) -> str:
    result = sorted(_INSTALLED.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    path = str(result[-1]) if result else shutil.which(name)
    assert path is not None, "PostgreSQL is not installed: apt-get install postgresql"
    return path
