"""Adapters shared with other projects of their organization."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.accounts import projects
from tenants.adapters.index import RegisteredAdapter
from tenants.adapters.registry import AdapterRegistry, fetch
from tenants.audit import Act, record
from tenants.errors import InvalidValue, NotFound
from tenants.secrets import new_id
from tenants.storage import now_ms, page_of
from tenants.tables import adapter_permissions
from tenants.types import Page


@dataclass(frozen=True, slots=True)
class AdapterPermission:
    """A project that may use an adapter of another. ``id`` is ``cp_...``; ``created_at`` in unix seconds."""

    id: str
    project_id: str
    created_at: int


class AdapterPermissions:
    """Which adapters are shared with whom, for the administration of their organization.

    Methods raise `StorageUnavailable`, and `NotFound` for an adapter that is not of the organization.
    """

    def __init__(self, registry: AdapterRegistry) -> None:
        self._registry = registry

    async def share(
        self, organization_id: str, name: str, project_ids: Sequence[str]
    ) -> list[AdapterPermission]:
        """All the projects may use the adapter from now on, or none of them where one cannot.

        Raises `NotFound` for a project that is not of the organization, `InvalidValue` for one that is
        archived or has the adapter itself, and for an adapter that is one user's alone.
        """

        async def work() -> list[AdapterPermission]:
            async with self._registry.storage.write() as connection:
                adapter = await fetch(connection, organization_id, name)
                if adapter.user_id is not None:
                    raise InvalidValue(
                        "fine_tuned_model_checkpoint",
                        "The adapter is visible to its user alone and cannot be shared.",
                    )
                permissions = [
                    await _grant(connection, adapter, project_id) for project_id in dict.fromkeys(project_ids)
                ]
            for permission in permissions:
                self._registry.index.share(adapter, permission.project_id)
            return permissions

        return await self._registry.change(work)

    async def listed(
        self,
        organization_id: str,
        name: str,
        *,
        project_id: str | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
    ) -> Page[AdapterPermission]:
        """The permissions of the adapter, or that of one project."""
        async with self._registry.storage.read() as connection:
            adapter = await fetch(connection, organization_id, name)
            of_adapter = adapter_permissions.c.adapter_id == adapter.id
            where = (
                [of_adapter]
                if project_id is None
                else [of_adapter, adapter_permissions.c.project_id == project_id]
            )
            return await page_of(
                connection,
                adapter_permissions,
                where,
                _permission,
                after=after,
                limit=limit,
                within=of_adapter,
                newest_first=newest_first,
            )

    async def revoke(self, organization_id: str, name: str, permission_id: str) -> None:
        """Revoke the project's permission to use the adapter. Raises `NotFound`."""

        async def work() -> None:
            async with self._registry.storage.write() as connection:
                adapter = await fetch(connection, organization_id, name)
                condition = (adapter_permissions.c.id == permission_id) & (
                    adapter_permissions.c.adapter_id == adapter.id
                )
                project_id = await connection.scalar(
                    select(adapter_permissions.c.project_id).where(condition)
                )
                if project_id is None:
                    raise NotFound("No such permission.")
                await connection.execute(delete(adapter_permissions).where(condition))
                gone = Act(
                    "checkpoint.permission.deleted",
                    organization_id,
                    permission_id,
                    adapter.project_id,
                    {"id": permission_id},
                )
                await record(connection, gone)
            self._registry.index.unshare(adapter, project_id)

        await self._registry.change(work)


async def _grant(
    connection: AsyncConnection, adapter: RegisteredAdapter, project_id: str
) -> AdapterPermission:
    """The permission that there is, or a new one."""
    organization_id = adapter.organization_id
    await projects.fetch_active(connection, organization_id, project_id)
    if project_id == adapter.project_id:
        raise InvalidValue("project_ids", f"The adapter belongs to the project {project_id} itself.")
    existing = select(adapter_permissions).where(
        adapter_permissions.c.adapter_id == adapter.id, adapter_permissions.c.project_id == project_id
    )
    row = (await connection.execute(existing)).mappings().one_or_none()
    if row is not None:
        return _permission(row)
    permission_id, created_ms = new_id("cp_"), now_ms()
    fresh = {"id": permission_id, "adapter_id": adapter.id, "project_id": project_id}
    await connection.execute(insert(adapter_permissions).values(**fresh, created_ms=created_ms))
    data = {"fine_tuned_model_checkpoint": adapter.name, "project_id": project_id}
    details = {"id": permission_id, "data": data}
    kind = "checkpoint.permission.created"
    await record(connection, Act(kind, organization_id, permission_id, adapter.project_id, details))
    return AdapterPermission(permission_id, project_id, created_ms // 1000)


def _permission(row: RowMapping) -> AdapterPermission:
    return AdapterPermission(row["id"], row["project_id"], row["created_ms"] // 1000)
