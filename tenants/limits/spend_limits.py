"""Monthly spend limits in the database, and in the budgets that requests are held to."""

import asyncio

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.accounts import projects
from tenants.audit import Act, record
from tenants.errors import InvalidValue
from tenants.limits.budgets import Budgets
from tenants.storage import Storage
from tenants.tables import spend_limits

MAX_CENTS = 10**13
"""A hundred billion dollars."""


class SpendLimitStore:
    """Spend limits of organizations and projects, in cents. ``project_id`` is ``None`` for the organization.

    A change is durable when it is told, and holds from then on. Every method raises `StorageUnavailable`
    where the database fails, and `NotFound` for an unknown project.
    """

    def __init__(self, database: AsyncEngine, budgets: Budgets) -> None:
        self._storage = Storage(database)
        self._budgets = budgets
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Read every limit into the budgets."""
        async with self._storage.read() as connection:
            rows = (await connection.execute(select(spend_limits))).mappings().all()
        for row in rows:
            self._budgets.set_limit(row["subject_id"], row["threshold_cents"])

    async def get(self, organization_id: str, project_id: str | None = None) -> int | None:
        """The limit; ``None`` if there is none."""
        if project_id is not None:
            async with self._storage.read() as connection:
                await projects.fetch(connection, organization_id, project_id)
        return self._budgets.limit(project_id or organization_id)

    async def set(self, organization_id: str, project_id: str | None, cents: int) -> None:
        """Set a monthly limit in cents. Raises `InvalidValue` for an archived project or a wrong amount."""
        if not 0 <= cents <= MAX_CENTS:
            raise InvalidValue(
                "threshold_amount", f"'threshold_amount' must be between 0 and {MAX_CENTS} cents."
            )
        subject_id = project_id or organization_id

        async def work() -> None:
            async with self._changing:
                async with self._storage.write() as connection:
                    if project_id is not None:
                        project = await projects.fetch(connection, organization_id, project_id)
                        if project.status != "active":
                            raise InvalidValue("project_id", "The project is archived.")
                    of_subject = spend_limits.c.subject_id == subject_id
                    changed = await connection.execute(
                        update(spend_limits).where(of_subject).values(threshold_cents=cents)
                    )
                    if changed.rowcount == 0:
                        row = {
                            "subject_id": subject_id,
                            "organization_id": organization_id,
                            "threshold_cents": cents,
                        }
                        await connection.execute(insert(spend_limits).values(row))
                    details = {"threshold_amount": cents}
                    kind = "torpor.spend_limit.updated"
                    await record(connection, Act(kind, organization_id, subject_id, project_id, details))
                self._budgets.set_limit(subject_id, cents)

        await self._storage.to_the_end(work())

    async def delete(self, organization_id: str, project_id: str | None = None) -> bool:
        """Whether there was one."""
        subject_id = project_id or organization_id

        async def work() -> bool:
            async with self._changing:
                async with self._storage.write() as connection:
                    if project_id is not None:
                        await projects.fetch(connection, organization_id, project_id)
                    of_subject = spend_limits.c.subject_id == subject_id
                    deleted = await connection.execute(delete(spend_limits).where(of_subject))
                    if deleted.rowcount:
                        kind = "torpor.spend_limit.deleted"
                        await record(connection, Act(kind, organization_id, subject_id, project_id))
                self._budgets.set_limit(subject_id, None)
                return deleted.rowcount > 0

        return await self._storage.to_the_end(work())
