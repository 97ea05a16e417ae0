"""Organizations in the database."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import insert, or_, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.audit import Act, record
from tenants.errors import Conflict, InvalidValue, NotFound
from tenants.secrets import new_id
from tenants.storage import Storage, checked_name, checked_slug, now_ms, page_of, seconds
from tenants.tables import api_keys, organizations, projects
from tenants.types import Organization, Page


class Organizations:
    """The organizations of an installation. ``forget`` is called with one whose credentials end.

    Lists are in order of creation; ``after`` is the id of the last item that was seen. Methods raise
    `StorageUnavailable`, and `NotFound` for what does not exist.
    """

    def __init__(self, storage: Storage, forget: Callable[[str], None]) -> None:
        self._storage = storage
        self._forget = forget

    async def create(self, slug: str, name: str | None = None) -> Organization:
        """Create an organization. The name is the slug by default. Raises `Conflict` if the slug is taken."""
        async with self._storage.write() as connection:
            return await add(connection, slug, name)

    async def listed(
        self, *, after: str | None = None, limit: int = 20, include_archived: bool = False
    ) -> Page[Organization]:
        """Organizations, the oldest first."""
        where = [] if include_archived else [organizations.c.archived_ms.is_(None)]
        async with self._storage.read() as connection:
            return await page_of(connection, organizations, where, _organization, after=after, limit=limit)

    async def get(self, id_or_slug: str) -> Organization:
        """The organization with this id or slug; an id goes before a slug. Raises `NotFound`."""
        async with self._storage.read() as connection:
            return await fetch(connection, id_or_slug)

    async def rename(self, id_or_slug: str, name: str) -> Organization:
        """Change the name; the slug stays, since names of models hold it. Raises as `fetch_active` does."""
        async with self._storage.write() as connection:
            organization = await fetch_active(connection, id_or_slug)
            values: dict[str, Any] = {"name": checked_name(name)}
            await connection.execute(
                update(organizations).where(organizations.c.id == organization.id).values(values)
            )
            details = {"id": organization.id, "changes_requested": values}
            await record(
                connection, Act("organization.updated", organization.id, organization.id, details=details)
            )
            return await fetch(connection, organization.id)

    async def archive(self, id_or_slug: str) -> tuple[Organization, int]:
        """Archive it with its projects, and revoke all its keys; returns how many those were. Idempotent."""

        async def work() -> tuple[Organization, int]:
            organization = await self.get(id_or_slug)
            try:
                return await self._archive(organization.id)
            finally:
                self._forget(organization.id)

        return await self._storage.to_the_end(work())

    async def _archive(self, id_or_slug: str) -> tuple[Organization, int]:
        async with self._storage.write() as connection:
            organization, at = await fetch(connection, id_or_slug), now_ms()
            for table in (organizations, projects):
                column = table.c.id if table is organizations else table.c.organization_id
                open_ = update(table).where(column == organization.id, table.c.archived_ms.is_(None))
                await connection.execute(open_.values(archived_ms=at))
            keys = update(api_keys).where(
                api_keys.c.organization_id == organization.id, api_keys.c.revoked_ms.is_(None)
            )
            revoked = (await connection.execute(keys.values(revoked_ms=at))).rowcount
            if organization.archived_at is None:
                details = {"id": organization.id, "revoked_keys": revoked}
                await record(
                    connection,
                    Act("torpor.organization.archived", organization.id, organization.id, details=details),
                )
            return await fetch(connection, organization.id), revoked


async def add(connection: AsyncConnection, slug: str, name: str | None) -> Organization:
    """As `Organizations.create`, in a transaction that the caller has."""
    organization_id, created_ms = new_id("org-"), now_ms()
    display_name = checked_name(slug if name is None else name)
    row = {"id": organization_id, "slug": checked_slug(slug), "name": display_name, "created_ms": created_ms}
    try:
        await connection.execute(insert(organizations).values(row))
    except IntegrityError as error:
        raise Conflict(f"There is an organization {slug!r} already.") from error
    details = {"id": organization_id, "data": {"slug": slug, "name": display_name}}
    await record(
        connection, Act("torpor.organization.created", organization_id, organization_id, details=details)
    )
    return Organization(organization_id, slug, display_name, created_ms // 1000)


async def fetch(connection: AsyncConnection, id_or_slug: str) -> Organization:
    """As `Organizations.get`, on a connection that the caller has."""
    statement = select(organizations).where(
        or_(organizations.c.id == id_or_slug, organizations.c.slug == id_or_slug)
    )
    rows = (await connection.execute(statement)).mappings().all()
    matches = sorted(
        (_organization(row) for row in rows), key=lambda organization: organization.id != id_or_slug
    )
    if not matches:
        raise NotFound("No such organization.")
    return matches[0]


async def fetch_active(connection: AsyncConnection, id_or_slug: str) -> Organization:
    """As `fetch`; raises `InvalidValue` if it is archived."""
    organization = await fetch(connection, id_or_slug)
    if organization.archived_at is not None:
        raise InvalidValue("organization", "The organization is archived.")
    return organization


def _organization(row: RowMapping) -> Organization:
    return Organization(
        row["id"], row["slug"], row["name"], row["created_ms"] // 1000, seconds(row["archived_ms"])
    )
