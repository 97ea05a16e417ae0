"""A PostgreSQL server of the tests' own: in a temporary folder, on a Unix socket there, gone at the end."""

import asyncio
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg

from gateway.database import migrate

_INSTALLED = Path("/usr/lib/postgresql")
_START_S = 30.0
_OPTIONS = ("fsync=off", "full_page_writes=off", "listen_addresses=", "max_connections=200", "jit=off")
"""What is written need not survive the machine: the folder does not either."""
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """``folder`` holds the socket. Databases are copies of one whose schema is the newest."""

    folder: Path

    def url(self, database: str) -> str:
        """As `gateway.database.open_database` takes it."""
        return f"postgresql+asyncpg://torpor@/{database}?host={self.folder}"

    async def create(self, template: str = "migrated") -> str:
        """A new database's URL."""
        name = f"test_{next(_numbers)}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    async def execute(self, statement: str) -> None:
        """Runs a statement for the server as a whole."""
        connection = await asyncpg.connect(host=str(self.folder), user="torpor", database="postgres")
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Fails where PostgreSQL is not installed: ``apt-get install postgresql`` brings it."""
    owner = _owner()
    # Not under pytest's folder: the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="torpor-pg-"))
    try:
        if owner is not None:
            shutil.chown(folder, owner)
        data = folder / "data"
        run = partial(subprocess.run, check=True, user=owner, cwd=folder, stdout=subprocess.DEVNULL)
        run([_program("initdb"), "-D", data, "-U", "torpor", "-A", "trust", "-E", "UTF8", "--no-sync"])
        settings = (*_OPTIONS, f"unix_socket_directories={folder}")
        options = [part for setting in settings for part in ("-c", setting)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [_program("postgres"), "-D", data, *options], user=owner, cwd=folder, stdout=log, stderr=log
            )
        try:
            server = PostgresServer(folder)
            asyncio.run(_prepare(server, lambda: process.poll() is None))
            yield server
        finally:
            # SIGINT ends it at once, whoever is connected.
            process.send_signal(2)
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _prepare(server: PostgresServer, running: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            await server.execute("CREATE DATABASE migrated")
            break
        except (OSError, asyncpg.CannotConnectNowError):
            if not running() or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
    await migrate(server.url("migrated"))


def _owner() -> str | None:
    """PostgreSQL refuses to run as root; its package brings a user for it."""
    return pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None


def _program(name: str) -> str:
    found = sorted(_INSTALLED.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    path = str(found[-1]) if found else shutil.which(name)
    assert path is not None, "PostgreSQL is not installed: apt-get install postgresql"
    return path
