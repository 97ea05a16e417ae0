"""Which models a project may use. The principal carries it, so a request needs no further look-up."""

import asyncio
import json
from collections.abc import Callable

from sqlalchemy import delete, insert, select

from tenants.accounts import keys, projects
from tenants.audit import Act, record
from tenants.storage import Storage
from tenants.tables import model_permissions
from tenants.types import ModelPermissions


class ModelPermissionStore:
    """Permissions of projects. What is set holds from the next request on, in every process.

    Methods raise `StorageUnavailable`, and `NotFound` for an unknown project. ``forget`` is told of a
    project whose keys are to be read again.
    """

    def __init__(self, storage: Storage, *, forget: Callable[[str], None]) -> None:
        self._storage = storage
        self._forget = forget
        self._changing = asyncio.Lock()

    async def get(self, organization_id: str, project_id: str) -> ModelPermissions | None:
        """``None`` where the project may use every model."""
        statement = select(model_permissions).where(model_permissions.c.project_id == project_id)
        async with self._storage.read() as connection:
            await projects.fetch(connection, organization_id, project_id)
            row = (await connection.execute(statement)).mappings().one_or_none()
        return None if row is None else keys.permissions_of(row)

    async def set(self, organization_id: str, project_id: str, permissions: ModelPermissions) -> None:
        """Put them in the place of earlier ones. Raises `InvalidValue` for an archived project."""
        models = sorted(permissions.models)
        row = {"project_id": project_id, "mode": permissions.mode.value, "model_ids": json.dumps(models)}

        async def work() -> None:
            try:
                async with self._changing, self._storage.write() as connection:
                    await projects.fetch_active(connection, organization_id, project_id)
                    of_project = model_permissions.c.project_id == project_id
                    await connection.execute(delete(model_permissions).where(of_project))
                    await connection.execute(insert(model_permissions).values(row))
                    details = {"mode": permissions.mode.value, "model_ids": models}
                    kind = "torpor.model_permissions.updated"
                    await record(connection, Act(kind, organization_id, project_id, project_id, details))
            finally:
                self._forget(project_id)

        await self._storage.to_the_end(work())

    async def delete(self, organization_id: str, project_id: str) -> bool:
        """Whether there were any."""

        async def work() -> bool:
            try:
                async with self._storage.write() as connection:
                    await projects.fetch(connection, organization_id, project_id)
                    of_project = model_permissions.c.project_id == project_id
                    deleted = await connection.execute(delete(model_permissions).where(of_project))
                    if deleted.rowcount:
                        kind = "torpor.model_permissions.deleted"
                        await record(connection, Act(kind, organization_id, project_id, project_id))
                return deleted.rowcount > 0
            finally:
                self._forget(project_id)

        return await self._storage.to_the_end(work())
