"""The registry of adapters: whose they are, which content they have, and who else may use them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import ColumnElement, delete, insert, or_, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tenants.accounts import projects
from tenants.adapters.index import AdapterIndex, RegisteredAdapter
from tenants.audit import Act, record
from tenants.errors import InvalidValue, NotFound, QuotaExceeded
from tenants.secrets import new_id
from tenants.storage import Storage, now_ms, page_of
from tenants.tables import adapter_permissions, adapters
from tenants.types import OrganizationPrincipal, Page, ProjectPrincipal

T = TypeVar("T")

PREFIX = "ft:"
"""What the name of every adapter begins with, and that of no base model."""
_ID_CHARACTERS = 12
"""log2(62) x 12 = 71 random bits."""


@dataclass(frozen=True, slots=True)
class AdapterQuota:
    """What one project may have."""

    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAdapter:
    """An adapter that is to be registered, by ``principal``; ``private`` to the user whom its token names."""

    principal: ProjectPrincipal
    private: bool
    base_model: str
    suffix: str
    digest: str
    rank: int
    size_bytes: int
    canary: bytes | None


class AdapterRegistry:
    """Adapters in the database, and in memory, where requests look them up.

    Made by `open_registry`. A change is durable when it is told, and holds from then on; each is in the
    audit log. Methods that touch the database raise `StorageUnavailable`.
    """

    def __init__(self, storage: Storage, quota: AdapterQuota) -> None:
        self._storage = storage
        self._quota = quota
        self._changing = asyncio.Lock()
        self.index = AdapterIndex()

    async def load(self) -> None:
        """Read all of them into the index, the oldest first."""
        in_order = select(adapters).order_by(adapters.c.created_ms, adapters.c.id)
        async with self._storage.read() as connection:
            rows = (await connection.execute(in_order)).mappings().all()
            grants = (await connection.execute(select(adapter_permissions))).mappings().all()
        adapters_by_id = {row["id"]: adapter_of(row) for row in rows}
        for adapter in adapters_by_id.values():
            self.index.add(adapter)
        for grant in grants:
            self.index.share(adapters_by_id[grant["adapter_id"]], grant["project_id"])

    def check_quota(self, project_id: str, size_bytes: int) -> None:
        """Check the quota for one more adapter of this size; raise `QuotaExceeded` if it does not fit."""
        holding, quota = self.index.holding(project_id), self._quota
        if holding.count >= quota.count:
            raise QuotaExceeded("adapters", quota.count, holding.count, 1)
        if holding.size_bytes + size_bytes > quota.size_bytes:
            raise QuotaExceeded("bytes of adapters", quota.size_bytes, holding.size_bytes, size_bytes)

    async def add(self, new: NewAdapter) -> RegisteredAdapter:
        """Register an adapter under a name of its own.

        Raises `QuotaExceeded`, and `InvalidValue` if its project has been archived in the meantime.
        """
        return await self.change(lambda: self._add(new))

    async def _add(self, new: NewAdapter) -> RegisteredAdapter:
        who = new.principal
        project_id, organization_id = who.project_id, who.organization_id
        self.check_quota(project_id, new.size_bytes)
        adapter_id = new_id("")[:_ID_CHARACTERS]
        name = f"{PREFIX}{new.base_model}:{who.organization}:{new.suffix}:{adapter_id}"
        row = {
            "id": adapter_id,
            "name": name,
            "organization_id": organization_id,
            "project_id": project_id,
            "user_id": who.user_id if new.private else None,
            "base_model": new.base_model,
            "suffix": new.suffix,
            "digest": new.digest,
            "rank": new.rank,
            "size_bytes": new.size_bytes,
            "canary": new.canary,
            "created_by": who.key_id,
            "created_ms": now_ms(),
        }
        async with self._storage.write() as connection:
            await projects.fetch_active(connection, organization_id, project_id)
            await connection.execute(insert(adapters).values(row))
            visible = {"visibility": "user" if new.private else "project", "user_id": row["user_id"]}
            details = {"id": name, "data": {"base_model": new.base_model, "digest": new.digest, **visible}}
            await record(
                connection, Act("torpor.adapter.created", organization_id, name, project_id, details)
            )
            existing = (
                (await connection.execute(select(adapters).where(adapters.c.id == adapter_id)))
                .mappings()
                .one()
            )
        adapter = adapter_of(existing)
        self.index.add(adapter)
        return adapter

    async def delete(self, adapter: RegisteredAdapter) -> None:
        """Delete an adapter; no request may use it any longer. Raises `NotFound` if it was deleted."""

        async def work() -> None:
            async with self._storage.write() as connection:
                grants = adapter_permissions.c.adapter_id == adapter.id
                await connection.execute(delete(adapter_permissions).where(grants))
                gone = await connection.execute(delete(adapters).where(adapters.c.id == adapter.id))
                if not gone.rowcount:
                    raise NotFound("No such adapter.")
                act = Act(
                    "torpor.adapter.deleted",
                    adapter.organization_id,
                    adapter.name,
                    adapter.project_id,
                    {"id": adapter.name},
                )
                await record(connection, act)
            self.index.remove(adapter)

        await self.change(work)

    async def listed(
        self, principal: OrganizationPrincipal, *, after: str | None = None, limit: int = 20
    ) -> Page[RegisteredAdapter]:
        """The adapters of the principal's project and of the user, the oldest first; ``after`` is a name.

        For an organization's admin key, all that the organization has.
        """
        owned = _owned_by(principal)
        async with self._storage.read() as connection:
            cursor = None
            if after is not None:
                last_seen = select(adapters.c.id).where(adapters.c.name == after, owned)
                cursor = await connection.scalar(last_seen)
                if cursor is None:
                    raise InvalidValue("after", "'after' is not the id of an item of this list.")
            return await page_of(
                connection, adapters, [owned], adapter_of, after=cursor, limit=limit, within=owned
            )

    async def of_organization(self, organization_id: str, name: str) -> RegisteredAdapter:
        """For the organization's administration. Raises `NotFound`, for another's as well."""
        async with self._storage.read() as connection:
            return await fetch(connection, organization_id, name)

    @property
    def storage(self) -> Storage:
        """The database."""
        return self._storage

    async def change(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work to its end, one change after the other: the index is never behind the database."""

        async def alone() -> T:
            async with self._changing:
                return await work()

        return await self._storage.to_the_end(alone())


async def fetch(connection: AsyncConnection, organization_id: str, name: str) -> RegisteredAdapter:
    """As `AdapterRegistry.of_organization`, on a connection that the caller has."""
    mine = select(adapters).where(adapters.c.organization_id == organization_id, adapters.c.name == name)
    row = (await connection.execute(mine)).mappings().one_or_none()
    if row is None:
        raise NotFound("No such adapter.")
    return adapter_of(row)


def _owned_by(principal: OrganizationPrincipal) -> ColumnElement[bool]:
    if not isinstance(principal, ProjectPrincipal):
        return adapters.c.organization_id == principal.organization_id
    mine: ColumnElement[bool] = adapters.c.user_id.is_(None)
    if principal.issuer is not None and principal.user_id is not None:
        mine = or_(mine, adapters.c.user_id == principal.user_id)
    return (adapters.c.project_id == principal.project_id) & mine


def adapter_of(row: RowMapping) -> RegisteredAdapter:
    """The adapter of a row."""
    return RegisteredAdapter(
        id=row["id"],
        name=row["name"],
        organization_id=row["organization_id"],
        project_id=row["project_id"],
        user_id=row["user_id"],
        base_model=row["base_model"],
        suffix=row["suffix"],
        digest=row["digest"],
        rank=row["rank"],
        size_bytes=row["size_bytes"],
        canary=row["canary"],
        created_at=row["created_ms"] // 1000,
    )


async def open_registry(database: AsyncEngine, quota: AdapterQuota) -> AdapterRegistry:
    """The registry in the database. Raises `StorageUnavailable`."""
    registry = AdapterRegistry(Storage(database), quota)
    await registry.load()
    return registry
