"""Organizations in the database."""

from sqlalchemy import insert, or_, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.errors import Conflict, NotFound
from tenants.secrets import new_id
from tenants.storage import Storage, checked_name, checked_slug, now_ms, page_of
from tenants.tables import organizations
from tenants.types import Organization, Page


async def create(storage: Storage, slug: str, name: str | None) -> Organization:
    """Raises `Conflict` where the slug is taken."""
    async with storage.write() as connection:
        return await add(connection, slug, name)


async def add(connection: AsyncConnection, slug: str, name: str | None) -> Organization:
    """As `create`, in a transaction that the caller has."""
    organization_id, created_ms = new_id("org-"), now_ms()
    shown = checked_name(slug if name is None else name)
    row = {"id": organization_id, "slug": checked_slug(slug), "name": shown, "created_ms": created_ms}
    try:
        await connection.execute(insert(organizations).values(row))
    except IntegrityError as error:
        raise Conflict(f"There is an organization {slug!r} already.") from error
    return Organization(organization_id, slug, shown, created_ms // 1000)


async def listed(storage: Storage, after: str | None, limit: int) -> Page[Organization]:
    """Every organization, the oldest first."""
    async with storage.read() as connection:
        return await page_of(connection, organizations, [], _organization, after=after, limit=limit)


async def get(storage: Storage, id_or_slug: str) -> Organization:
    """Raises `NotFound`. An id goes before a slug of the same text."""
    statement = select(organizations).where(
        or_(organizations.c.id == id_or_slug, organizations.c.slug == id_or_slug)
    )
    async with storage.read() as connection:
        rows = (await connection.execute(statement)).mappings().all()
    found = sorted((_organization(row) for row in rows), key=lambda one: one.id != id_or_slug)
    if not found:
        raise NotFound("No such organization.")
    return found[0]


def _organization(row: RowMapping) -> Organization:
    return Organization(row["id"], row["slug"], row["name"], row["created_ms"] // 1000)
