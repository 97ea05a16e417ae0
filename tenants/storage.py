"""What the parts of the store share: the database's failures translated, paging, checked values."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, Table, select, tuple_
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tenants.errors import InvalidValue, StorageUnavailable
from tenants.tables import organizations
from tenants.types import Page

T = TypeVar("T")

MAX_PAGE = 100
ANSWER_TIMEOUT_S = 10.0
_MAX_NAME = 256
_SLUG = re.compile(r"[A-Za-z0-9._-]{1,64}")


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def seconds(milliseconds: int | None) -> int | None:
    """Whole unix seconds of a stored time."""
    return None if milliseconds is None else milliseconds // 1000


@dataclass(slots=True)
class Storage:
    """The database, as the parts of the store use it. It is opened and disposed of by its owner.

    ``memory_s``: for how long after its last answer what was read from it may still be used.
    """

    database: AsyncEngine
    memory_s: float = 900.0
    clock: Callable[[], float] = time.monotonic
    answered_at: float = field(init=False)
    _running: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.answered_at = self.clock()

    def silent_s(self) -> float:
        """Seconds since the database has last answered."""
        return self.clock() - self.answered_at

    def trusted(self) -> bool:
        """Whether what is in memory may be used."""
        return self.clock() - self.answered_at < self.memory_s

    async def ping(self) -> None:
        """Read from the database; raises `StorageUnavailable`, also where that takes too long."""
        async with self.read(ANSWER_TIMEOUT_S) as connection:
            await connection.execute(select(organizations.c.id).limit(1))

    @asynccontextmanager
    async def read(self, timeout_s: float | None = None) -> AsyncIterator[AsyncConnection]:
        """A connection; raises `StorageUnavailable` where the database fails, or takes longer than that."""
        try:
            async with asyncio.timeout(timeout_s), self.database.connect() as connection:
                yield connection
                self.answered_at = self.clock()
        except (OperationalError, InterfaceError, PoolTimeoutError, OSError) as error:
            raise StorageUnavailable("the database is unavailable") from error
        except DBAPIError as error:
            if error.connection_invalidated or _is_the_servers(error):
                raise StorageUnavailable("the database is unavailable") from error
            raise

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that is committed at the end of the block."""
        async with self.read() as connection, connection.begin():
            yield connection

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits the work, which runs on where the waiting caller is cancelled.

        A commit that is on its way cannot be recalled, so what follows from it must happen as well.
        """
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)


_OF_THE_SERVER = ("25006", "40", "53", "55", "57", "58", "3D000", "XX")
"""How SQLSTATEs begin: a standby, a deadlock, no room, a lock, a shutdown, a disk, no database, a fault."""


def _is_the_servers(error: DBAPIError) -> bool:
    """Whether the database failed and not the statement, which asyncpg tells by SQLSTATE alone."""
    state = getattr(error.orig, "sqlstate", None)
    return isinstance(state, str) and state.startswith(_OF_THE_SERVER)


async def page_of(
    connection: AsyncConnection,
    table: Table,
    where: Sequence[ColumnElement[bool]],
    make: Callable[[RowMapping], T],
    *,
    after: str | None,
    limit: int,
    before: str | None = None,
    within: ColumnElement[bool] | None = None,
    statement: Select[Any] | None = None,
    newest_first: bool = False,
) -> Page[T]:
    """Rows in order of creation (then of id), those after the row whose id is ``after``.

    The cursor's row must be ``within`` the list's owner, but may have left the list since (a revoked key).
    With ``before``, the page is the last one that ends ahead of that row. ``statement`` selects from more
    than the table.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidValue("limit", f"'limit' must be between 1 and {MAX_PAGE}.")
    if after is not None and before is not None:
        raise InvalidValue("before", "Give either 'after' or 'before'.")
    # A page ahead of a row is read away from it, and turned round.
    name, cursor = ("before", before) if before is not None else ("after", after)
    descending = newest_first != (before is not None)
    order = tuple_(table.c.created_ms, table.c.id)
    chosen = (select(table) if statement is None else statement).where(*where)
    if cursor is not None:
        cursor_created = select(table.c.created_ms).where(table.c.id == cursor)
        created_ms = await connection.scalar(
            cursor_created if within is None else cursor_created.where(within)
        )
        if created_ms is None:
            raise InvalidValue(name, f"'{name}' is not the id of an item of this list.")
        position = tuple_(created_ms, cursor)
        chosen = chosen.where(order < position if descending else order > position)
    columns = (table.c.created_ms, table.c.id)
    chosen = chosen.order_by(*[column.desc() if descending else column for column in columns]).limit(
        limit + 1
    )
    rows = (await connection.execute(chosen)).mappings().all()
    visible = rows[:limit] if before is None else rows[:limit][::-1]
    return Page([make(row) for row in visible], len(rows) > limit)


def checked_name(name: str) -> str:
    """The name; raises `InvalidValue` where it is empty or too long."""
    if not name.strip() or len(name) > _MAX_NAME or not _storable(name):
        raise InvalidValue("name", f"'name' must be a string of 1 to {_MAX_NAME} characters.")
    return name


def checked_slug(slug: str) -> str:
    """The slug; raises `InvalidValue` where it has not the form of one."""
    if not _SLUG.fullmatch(slug):
        raise InvalidValue(
            "slug", "'slug' must be 1 to 64 of the characters A-Z, a-z, 0-9, '.', '_' and '-'."
        )
    return slug


def _storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
