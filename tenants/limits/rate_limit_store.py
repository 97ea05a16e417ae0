"""Limits in the database, and the book of them in memory that requests are held to."""

import asyncio
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table, delete, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tenants.accounts import projects
from tenants.audit import Act, record
from tenants.errors import InvalidValue, NotFound
from tenants.limits.rate_limits import MOST, NO_LIMIT, LimitBook, RateLimit, SubjectLimit, SubjectType
from tenants.secrets import new_id
from tenants.storage import Storage, now_ms, page_of
from tenants.tables import api_keys, rate_limits, subject_limits
from tenants.types import Page

_MAX_USER = 256

Changes = Mapping[str, int | None]
"""Sizes by the names of `RateLimit`; ``None`` takes a limit away. What is not named stays as it is."""


class LimitStore:
    """Reads and changes limits. A change is durable when the call returns, and holds from then on.

    Every method raises `StorageUnavailable` if the database fails; limits in memory go on holding.
    """

    def __init__(self, database: AsyncEngine, book: LimitBook) -> None:
        self._storage = Storage(database)
        self._book = book
        # One change after the other: the book never keeps an older one than the database.
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Read every limit into the book."""
        async with self._storage.read() as connection:
            of_models = (await connection.execute(select(rate_limits))).mappings().all()
            of_subjects = (await connection.execute(select(subject_limits))).mappings().all()
        self._book.load(
            {(row["project_id"], row["model"]): _limit(row) for row in of_models},
            {_subject(row): _limit(row) for row in of_subjects},
        )

    async def of_model(self, organization_id: str, project_id: str, model: str) -> RateLimit:
        """What holds for the project's requests to the model. Raises `NotFound` for an unknown project."""
        async with self._storage.read() as connection:
            await projects.fetch(connection, organization_id, project_id)
        return self._book.of_model(project_id, model)

    def adapters(self, project_id: str, prefix: str) -> list[str]:
        """As `LimitBook.adapters`."""
        return self._book.adapters(project_id, prefix)

    async def update_model(
        self, organization_id: str, project_id: str, model: str, changes: Changes
    ) -> RateLimit:
        """The project's limits for the model, changed; ``None`` goes back to the default.

        Raises `NotFound` for an unknown project, `InvalidValue` for an archived one or a bad size.
        """
        _check(changes)
        condition = (rate_limits.c.project_id == project_id) & (rate_limits.c.model == model)

        async def work() -> RateLimit:
            async with self._changing:
                async with self._storage.write() as connection:
                    project = await projects.fetch(connection, organization_id, project_id)
                    if project.status != "active":
                        raise InvalidValue("project_id", "The project is archived.")
                    identity = {"project_id": project_id, "model": model}
                    row = await _put(connection, rate_limits, condition, identity, changes)
                    limit_id = f"rl-{model}"
                    details = {"id": limit_id, "changes_requested": dict(changes)}
                    await record(
                        connection,
                        Act("rate_limit.updated", organization_id, limit_id, project_id, details),
                    )
                self._book.set_model(project_id, model, _limit(row))
                return self._book.of_model(project_id, model)

        return await self._storage.to_the_end(work())

    async def list_subjects(
        self, organization_id: str, *, after: str | None = None, limit: int = 20
    ) -> Page[SubjectLimit]:
        """Limits of projects, keys and users, the oldest first."""
        of_organization = subject_limits.c.organization_id == organization_id
        async with self._storage.read() as connection:
            return await page_of(
                connection,
                subject_limits,
                [of_organization],
                _subject_limit,
                after=after,
                limit=limit,
                within=of_organization,
            )

    async def get_subject(self, organization_id: str, limit_id: str) -> SubjectLimit:
        """Return a limit of the organization. Raises `NotFound`, for another organization's limit as well."""
        async with self._storage.read() as connection:
            return _subject_limit(await _fetch(connection, organization_id, limit_id))

    async def set_subject(
        self, organization_id: str, kind: SubjectType, subject_id: str, changes: Changes
    ) -> SubjectLimit:
        """Create or change the limits of a project, a key or a user.

        Raises `NotFound` for a project or key that is not there, `InvalidValue` for a bad size.
        """
        _check(changes)
        identity = {
            "organization_id": organization_id,
            "subject_type": kind.value,
            "subject_id": subject_id,
        }
        condition = (
            (subject_limits.c.organization_id == organization_id)
            & (subject_limits.c.subject_type == kind.value)
            & (subject_limits.c.subject_id == subject_id)
        )

        async def work() -> SubjectLimit:
            async with self._changing:
                async with self._storage.write() as connection:
                    await _check_subject(connection, organization_id, kind, subject_id)
                    fresh = {"id": new_id("lim_"), "created_ms": now_ms()}
                    row = await _put(connection, subject_limits, condition, identity, changes, fresh)
                    details = {"id": row["id"], "subject": subject_id, "changes_requested": dict(changes)}
                    await record(
                        connection,
                        Act("torpor.limit.updated", organization_id, row["id"], details=details),
                    )
                self._book.set_subject(organization_id, kind, subject_id, _limit(row))
                return _subject_limit(row)

        return await self._storage.to_the_end(work())

    async def read_subject(self, organization_id: str, kind: SubjectType, subject_id: str) -> None:
        """Take the subject's limits into the book, where something else has written them."""
        condition = (
            (subject_limits.c.organization_id == organization_id)
            & (subject_limits.c.subject_type == kind.value)
            & (subject_limits.c.subject_id == subject_id)
        )
        async with self._changing:
            async with self._storage.read() as connection:
                row = (
                    (await connection.execute(select(subject_limits).where(condition)))
                    .mappings()
                    .one_or_none()
                )
            limit = NO_LIMIT if row is None else _limit(row)
            self._book.set_subject(organization_id, kind, subject_id, limit)

    async def delete_subject(self, organization_id: str, limit_id: str) -> None:
        """Delete a limit of the organization. Raises `NotFound`."""

        async def work() -> None:
            async with self._changing:
                async with self._storage.write() as connection:
                    row = await _fetch(connection, organization_id, limit_id)
                    await connection.execute(delete(subject_limits).where(subject_limits.c.id == limit_id))
                    gone = {"id": limit_id, "subject": row["subject_id"]}
                    await record(
                        connection, Act("torpor.limit.deleted", organization_id, limit_id, details=gone)
                    )
                self._book.set_subject(*_subject(row), NO_LIMIT)

        await self._storage.to_the_end(work())


async def _put(
    connection: AsyncConnection,
    table: Table,
    condition: Any,
    identity: Mapping[str, Any],
    changes: Changes,
    fresh: Mapping[str, Any] | None = None,
) -> RowMapping:
    """Change the row, or insert it with the values of ``fresh``, and return it."""
    existing = await connection.scalar(
        select(table.c[next(iter(identity))]).where(condition).with_for_update()
    )
    if existing is None:
        await connection.execute(insert(table).values(**identity, **(fresh or {}), **changes))
    elif changes:
        await connection.execute(update(table).where(condition).values(**changes))
    return (await connection.execute(select(table).where(condition))).mappings().one()


async def _fetch(connection: AsyncConnection, organization_id: str, limit_id: str) -> RowMapping:
    statement = select(subject_limits).where(
        subject_limits.c.id == limit_id, subject_limits.c.organization_id == organization_id
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise NotFound("No such limit.")
    return row


async def _check_subject(
    connection: AsyncConnection, organization_id: str, kind: SubjectType, subject_id: str
) -> None:
    """A project and a key must be the organization's; users may be unknown: tokens name them."""
    if kind is SubjectType.PROJECT:
        await projects.fetch(connection, organization_id, subject_id)
    elif kind is SubjectType.KEY:
        key = api_keys.c
        statement = select(key.id).where(
            key.id == subject_id,
            key.organization_id == organization_id,
            key.project_id.is_not(None),
            key.revoked_ms.is_(None),
        )
        if await connection.scalar(statement) is None:
            raise NotFound("No such key.")
    elif not subject_id.strip() or len(subject_id) > _MAX_USER or not subject_id.isprintable():
        raise InvalidValue("subject_id", f"'subject_id' must be 1 to {_MAX_USER} printable characters.")


def _check(changes: Changes) -> None:
    for name, size in changes.items():
        if size is not None and not 1 <= size <= MOST:
            raise InvalidValue(name, f"'{name}' must be between 1 and {MOST}, or null for no limit.")


def _limit(row: RowMapping) -> RateLimit:
    names = RateLimit.__slots__
    return RateLimit(**{name: row[name] for name in names if name in row})


def _subject(row: RowMapping) -> tuple[str, SubjectType, str]:
    return row["organization_id"], SubjectType(row["subject_type"]), row["subject_id"]


def _subject_limit(row: RowMapping) -> SubjectLimit:
    return SubjectLimit(
        row["id"],
        SubjectType(row["subject_type"]),
        row["subject_id"],
        _limit(row),
        row["created_ms"] // 1000,
    )
