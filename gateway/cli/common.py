"""What the commands share: the configuration, the keys, and the API, whether a gateway runs or not."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx
from sqlalchemy.exc import OperationalError

from gateway.app import create_app
from gateway.cli.errors import CommandError
from gateway.config.loader import Wanted
from gateway.config.sections import Config, ConfigError, load_config
from gateway.http.context import RequestContext
from gateway.listening import LocalTransport, origin_of
from gateway.storage.credentials import CredentialsFile
from gateway.storage.data_directory import DataDirectory, RunningGateway
from gateway.storage.database import migrate
from gateway.storage.errors import DatabaseError
from gateway.storage.privacy import DataDirectoryError

T = TypeVar("T")
DEFAULT_CONFIG = "torpor.toml"
APPLY_CHANGES = "`torpor stop` and `torpor start` apply the change"
_TIMEOUT_S = 30.0


config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_CONFIG,
    envvar="TORPOR_CONFIG",
    show_default=True,
    help="The configuration.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@dataclass(frozen=True, slots=True)
class Installation:
    """A configuration and its data directory."""

    config: Config
    data: DataDirectory

    @classmethod
    def load(cls, config_file: Path, *, only: Wanted | None = None) -> "Installation":
        """Load the configuration of an installation. Raises `CommandError` if it cannot be used."""
        try:
            config = load_config(config_file, only=only)
        except ConfigError as error:
            raise CommandError(str(error)) from None
        return cls(config, DataDirectory(config.storage.data_dir.absolute()))

    def credential(self, name: str) -> str:
        """A key from the environment, else from the credentials of the demo organization."""
        value = os.environ.get(name) or self.credentials().get(name)
        if not value:
            raise CommandError(f"set {name} to the key to use")
        return value

    @property
    def credentials_file(self) -> CredentialsFile:
        """The keys of the demo organization."""
        return CredentialsFile(self.data.credentials_file)

    def credentials(self) -> dict[str, str]:
        """The ``export KEY=value`` lines of the credentials file; empty if it is missing."""
        return self.credentials_file.read()

    @property
    def origin(self) -> str:
        """Scheme, host and port of the gateway that runs, or else of the one that is configured.

        The running one may have been started with another port in its environment.
        """
        gateway = self.data.running()
        return origin_of(self.config.server) if gateway is None else gateway.origin

    def require_running(self) -> RunningGateway:
        """The gateway that runs with this data directory; raises `CommandError` if none does."""
        gateway = self.data.running()
        if gateway is None:
            raise CommandError(
                f"no gateway is running with the data directory {self.data.path}; "
                "start one with `torpor start`"
            )
        return gateway

    def http(self, key: str | None, timeout_s: float = _TIMEOUT_S) -> httpx.AsyncClient:
        """A client of the running gateway, through the socket in its data directory.

        So no other program gets the key, even if it listens on the gateway's port. Raises `CommandError` if
        no gateway of this data directory runs, and `DataDirectoryError`.
        """
        self.require_running()
        return httpx.AsyncClient(
            base_url="http://torpor",
            headers=_bearer(key),
            timeout=timeout_s,
            trust_env=False,
            transport=LocalTransport(self.data.socket),
        )

    @asynccontextmanager
    async def api(
        self, key: str, *, engines: bool = False, timeout_s: float = _TIMEOUT_S
    ) -> AsyncIterator[httpx.AsyncClient]:
        """The API of the running gateway; if none runs, the same routes on the database itself.

        The data directory is locked then, so no gateway starts in between. ``engines``: with the
        models of the configuration, none of which starts by itself.
        """
        if self.data.running() is not None:
            async with self.http(key, timeout_s) as client:
                yield client
            return
        models = tuple(replace(model, preload=False, min_hot=0) for model in self.config.models)
        with self.data.held():
            await migrate(self.config.storage.database_url())
            app = create_app(replace(self.config, models=models if engines else ()), self.data)
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(RequestContext(app))
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://torpor", headers=_bearer(key), timeout=timeout_s
                ) as client:
                    yield client


def _bearer(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a command's coroutine; what a user can do something about becomes a `CommandError`."""
    try:
        return asyncio.run(work())
    except httpx.HTTPError as error:
        raise CommandError(f"the gateway does not answer: {error or type(error).__name__}") from None
    except (DataDirectoryError, DatabaseError) as error:
        raise CommandError(str(error)) from None
    except OperationalError as error:
        reason = str(error.orig).splitlines()[0]
        raise CommandError(
            f"the database cannot be used: {reason}; check [storage] database and the space on its disk"
        ) from None


def answer(response: httpx.Response) -> dict[str, Any]:
    """The JSON of a good answer; an error envelope becomes a `CommandError`."""
    try:
        body: dict[str, Any] = response.json()
    except ValueError:
        raise CommandError(f"the gateway answered {response.status_code} without JSON") from None
    if response.is_error:
        error = body.get("error", {})
        raise CommandError(f"{error.get('message', response.status_code)} ({error.get('code')})")
    return body


def print_table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Columns as wide as their widest cell; numbers to the right."""
    cells = [heads, *[tuple("" if cell is None else str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for number, row in enumerate(cells):
        aligned = [
            cell.rjust(width) if number and isinstance(rows[number - 1][column], int) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(aligned).rstrip())
