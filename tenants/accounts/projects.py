"""Projects in the database."""

from sqlalchemy import insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.accounts import organizations
from tenants.audit import Act, record
from tenants.errors import InvalidValue, NotFound
from tenants.secrets import new_id
from tenants.storage import Storage, checked_name, now_ms, page_of, seconds
from tenants.tables import projects
from tenants.types import Page, Project


async def create(storage: Storage, organization_id: str, name: str) -> Project:
    """Raises `NotFound` where there is no such organization, `InvalidValue` where it is archived."""
    project_id, created_ms = new_id("proj_"), now_ms()
    row = {"id": project_id, "organization_id": organization_id, "name": checked_name(name)}
    async with storage.write() as connection:
        await organizations.fetch_active(connection, organization_id)
        await connection.execute(insert(projects).values(**row, created_ms=created_ms))
        details = {"id": project_id, "data": {"name": name, "title": name}}
        await record(connection, Act("project.created", organization_id, project_id, project_id, details))
    return Project(project_id, organization_id, name, "active", created_ms // 1000, None)


async def listed(
    storage: Storage, organization_id: str, after: str | None, limit: int, include_archived: bool
) -> Page[Project]:
    """Projects of the organization, the oldest first."""
    of_organization = projects.c.organization_id == organization_id
    where = [of_organization] if include_archived else [of_organization, projects.c.archived_ms.is_(None)]
    async with storage.read() as connection:
        return await page_of(
            connection, projects, where, _project, after=after, limit=limit, within=of_organization
        )


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


async def fetch_active(connection: AsyncConnection, organization_id: str, project_id: str) -> Project:
    """As `fetch`; raises `InvalidValue` where it is archived."""
    project = await fetch(connection, organization_id, project_id)
    if project.status != "active":
        raise InvalidValue("project_id", "The project is archived.")
    return project


async def rename(storage: Storage, organization_id: str, project_id: str, name: str) -> Project:
    """Raises `NotFound`, and `InvalidValue` where it is archived."""
    async with storage.write() as connection:
        await fetch_active(connection, organization_id, project_id)
        statement = update(projects).where(projects.c.id == project_id)
        await connection.execute(statement.values(name=checked_name(name)))
        details = {"id": project_id, "changes_requested": {"name": name, "title": name}}
        await record(connection, Act("project.updated", organization_id, project_id, project_id, details))
        return await fetch(connection, organization_id, project_id)


async def archive(storage: Storage, organization_id: str, project_id: str) -> Project:
    """Archives the project; one that is archived keeps the time when it was."""
    statement = (
        update(projects)
        .where(projects.c.id == project_id, projects.c.organization_id == organization_id)
        .where(projects.c.archived_ms.is_(None))
        .values(archived_ms=now_ms())
    )
    async with storage.write() as connection:
        archived = await connection.execute(statement)
        if archived.rowcount:
            act = Act("project.archived", organization_id, project_id, project_id, {"id": project_id})
            await record(connection, act)
        return await fetch(connection, organization_id, project_id)


def _project(row: RowMapping) -> Project:
    archived_at = seconds(row["archived_ms"])
    status = "active" if archived_at is None else "archived"
    return Project(
        row["id"], row["organization_id"], row["name"], status, row["created_ms"] // 1000, archived_at
    )
