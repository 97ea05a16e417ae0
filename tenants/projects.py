"""Projects in the database."""

from sqlalchemy import insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.errors import NotFound
from tenants.secrets import new_id
from tenants.storage import Storage, checked_name, now_ms, page_of, seconds
from tenants.tables import organizations, projects
from tenants.types import Page, Project


async def create(storage: Storage, organization_id: str, name: str) -> Project:
    """Raises `NotFound` where there is no such organization."""
    project_id, created_ms = new_id("proj_"), now_ms()
    row = {"id": project_id, "organization_id": organization_id, "name": checked_name(name)}
    async with storage.write() as connection:
        known = select(organizations.c.id).where(organizations.c.id == organization_id)
        if await connection.scalar(known) is None:
            raise NotFound("No such organization.")
        await connection.execute(insert(projects).values(**row, created_ms=created_ms))
    return Project(project_id, organization_id, name, "active", created_ms // 1000, None)


async def listed(
    storage: Storage, organization_id: str, after: str | None, limit: int, include_archived: bool
) -> Page[Project]:
    """Projects of the organization, the oldest first."""
    own = projects.c.organization_id == organization_id
    where = [own] if include_archived else [own, projects.c.archived_ms.is_(None)]
    async with storage.read() as connection:
        return await page_of(connection, projects, where, _project, after=after, limit=limit, within=own)


async def get(storage: Storage, organization_id: str, project_id: str) -> Project:
    """Raises `NotFound`, for another organization's project as well."""
    async with storage.read() as connection:
        return await fetch(connection, organization_id, project_id)


async def fetch(connection: AsyncConnection, organization_id: str, project_id: str) -> Project:
    """As `get`, on a connection that the caller has."""
    statement = select(projects).where(
        projects.c.id == project_id, projects.c.organization_id == organization_id
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise NotFound("No such project.")
    return _project(row)


async def archive(storage: Storage, organization_id: str, project_id: str) -> Project:
    """Archives the project; one that is archived keeps the time when it was."""
    statement = (
        update(projects)
        .where(projects.c.id == project_id, projects.c.organization_id == organization_id)
        .where(projects.c.archived_ms.is_(None))
        .values(archived_ms=now_ms())
    )
    async with storage.write() as connection:
        await connection.execute(statement)
        return await fetch(connection, organization_id, project_id)


def _project(row: RowMapping) -> Project:
    archived_at = seconds(row["archived_ms"])
    status = "active" if archived_at is None else "archived"
    return Project(
        row["id"], row["organization_id"], row["name"], status, row["created_ms"] // 1000, archived_at
    )
