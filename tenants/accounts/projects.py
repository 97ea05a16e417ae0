"""Projects in the database."""

from collections.abc import Callable

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


class Projects:
    """The projects of organizations. ``forget`` is called with one whose credentials end.

    Lists are in order of creation; ``after`` is the id of the last item that was seen. Methods raise
    `StorageUnavailable`, and `NotFound` for what does not exist.
    """

    def __init__(self, storage: Storage, forget: Callable[[str], None]) -> None:
        self._storage = storage
        self._forget = forget

    async def create(self, organization_id: str, name: str) -> Project:
        """Create a project. Raises `InvalidValue` if the organization is archived."""
        project_id, created_ms = new_id("proj_"), now_ms()
        row = {"id": project_id, "organization_id": organization_id, "name": checked_name(name)}
        async with self._storage.write() as connection:
            await organizations.fetch_active(connection, organization_id)
            await connection.execute(insert(projects).values(**row, created_ms=created_ms))
            details = {"id": project_id, "data": {"name": name, "title": name}}
            await record(connection, Act("project.created", organization_id, project_id, project_id, details))
        return Project(project_id, organization_id, name, "active", created_ms // 1000, None)

    async def listed(
        self,
        organization_id: str,
        *,
        after: str | None = None,
        limit: int = 20,
        include_archived: bool = False,
    ) -> Page[Project]:
        """Projects of the organization, the oldest first."""
        of_organization = projects.c.organization_id == organization_id
        where = [of_organization] if include_archived else [of_organization, projects.c.archived_ms.is_(None)]
        async with self._storage.read() as connection:
            return await page_of(
                connection, projects, where, _project, after=after, limit=limit, within=of_organization
            )

    async def get(self, organization_id: str, project_id: str) -> Project:
        """The project. Raises `NotFound`, for another organization's project as well."""
        async with self._storage.read() as connection:
            return await fetch(connection, organization_id, project_id)

    async def rename(self, organization_id: str, project_id: str, name: str) -> Project:
        """Change the name. Raises `NotFound`, and `InvalidValue` if the project is archived."""
        async with self._storage.write() as connection:
            await fetch_active(connection, organization_id, project_id)
            statement = update(projects).where(projects.c.id == project_id)
            await connection.execute(statement.values(name=checked_name(name)))
            details = {"id": project_id, "changes_requested": {"name": name, "title": name}}
            await record(connection, Act("project.updated", organization_id, project_id, project_id, details))
            return await fetch(connection, organization_id, project_id)

    async def archive(self, organization_id: str, project_id: str) -> Project:
        """Archive the project; its keys stop working at once. An archived one keeps its time. Idempotent."""

        async def work() -> Project:
            try:
                return await self._archive(organization_id, project_id)
            finally:
                self._forget(project_id)

        return await self._storage.to_the_end(work())

    async def _archive(self, organization_id: str, project_id: str) -> Project:
        statement = (
            update(projects)
            .where(projects.c.id == project_id, projects.c.organization_id == organization_id)
            .where(projects.c.archived_ms.is_(None))
            .values(archived_ms=now_ms())
        )
        async with self._storage.write() as connection:
            archived = await connection.execute(statement)
            if archived.rowcount:
                act = Act("project.archived", organization_id, project_id, project_id, {"id": project_id})
                await record(connection, act)
            return await fetch(connection, organization_id, project_id)


async def fetch(connection: AsyncConnection, organization_id: str, project_id: str) -> Project:
    """As `Projects.get`, on a connection that the caller has."""
    statement = select(projects).where(
        projects.c.id == project_id, projects.c.organization_id == organization_id
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise NotFound("No such project.")
    return _project(row)


async def fetch_active(connection: AsyncConnection, organization_id: str, project_id: str) -> Project:
    """As `fetch`; raises `InvalidValue` if it is archived."""
    project = await fetch(connection, organization_id, project_id)
    if project.status != "active":
        raise InvalidValue("project_id", "The project is archived.")
    return project


def _project(row: RowMapping) -> Project:
    archived_at = seconds(row["archived_ms"])
    status = "active" if archived_at is None else "archived"
    return Project(
        row["id"], row["organization_id"], row["name"], status, row["created_ms"] // 1000, archived_at
    )
