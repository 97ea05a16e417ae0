"""Service accounts: the programs of a project, and their keys."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.accounts import keys, projects
from tenants.audit import Act, record
from tenants.errors import InvalidValue, NotFound
from tenants.secrets import digest, new_id
from tenants.storage import Storage, checked_name, now_ms, page_of
from tenants.tables import api_keys, service_accounts
from tenants.types import ALL_SCOPES, ApiKey, KeyKind, Page, ServiceAccount

ROLES = ("owner", "member")
NO_ROLE = "none"

Made = tuple[ApiKey, str]
"""A key and its secret."""


class ServiceAccounts:
    """Service accounts of projects.

    Methods raise `StorageUnavailable`, `NotFound` for what is not there or another organization's, and those
    that change something `InvalidValue` in an archived project. ``forget`` is told of a project whose keys
    have changed, ``welcome`` of the digest of a new key.
    """

    def __init__(
        self,
        storage: Storage,
        pepper: bytes,
        *,
        forget: Callable[[str], None],
        welcome: Callable[[bytes], None],
    ) -> None:
        self._storage = storage
        self._pepper = pepper
        self._forget = forget
        self._welcome = welcome

    async def create(self, organization_id: str, project_id: str, name: str) -> ServiceAccount:
        """An account without a key, and without a role."""
        async with self._storage.write() as connection:
            await projects.fetch_active(connection, organization_id, project_id)
            return await _add(connection, organization_id, project_id, name, NO_ROLE)

    async def create_with_key(
        self,
        organization_id: str,
        project_id: str,
        name: str,
        *,
        expires_at: int | None = None,
        scopes: frozenset[str] = ALL_SCOPES,
    ) -> tuple[ServiceAccount, Made]:
        """An account and a key of the same name, both or none. ``expires_at`` is in unix seconds."""
        keys.checked_expiry(expires_at)
        keys.checked_scopes(scopes)
        async with self._storage.write() as connection:
            await projects.fetch_active(connection, organization_id, project_id)
            account = await _add(connection, organization_id, project_id, name, ROLES[1])
            key_and_secret = await self._key(connection, organization_id, account, name, expires_at, scopes)
        return account, self._made(key_and_secret)

    async def create_key(
        self,
        organization_id: str,
        project_id: str,
        account_id: str,
        name: str | None,
        *,
        expires_at: int | None = None,
        scopes: frozenset[str] = ALL_SCOPES,
    ) -> Made:
        """A further key of the account, named as the account is where no name is given."""
        keys.checked_expiry(expires_at)
        keys.checked_scopes(scopes)
        async with self._storage.write() as connection:
            await projects.fetch_active(connection, organization_id, project_id)
            # Locks the row, so an account that is deleted at the same time gets no key.
            await connection.execute(
                update(service_accounts)
                .where(_this(account_id))
                .values(deleted_ms=service_accounts.c.deleted_ms)
            )
            account = await _fetch(connection, project_id, account_id)
            key_name = account.name if name is None else name
            key_and_secret = await self._key(
                connection, organization_id, account, key_name, expires_at, scopes
            )
        return self._made(key_and_secret)

    async def listed(
        self, organization_id: str, project_id: str, *, after: str | None = None, limit: int = 20
    ) -> Page[ServiceAccount]:
        """The project's accounts, the oldest first."""
        of_project = service_accounts.c.project_id == project_id
        where = [of_project, service_accounts.c.deleted_ms.is_(None)]
        async with self._storage.read() as connection:
            await projects.fetch(connection, organization_id, project_id)
            return await page_of(
                connection, service_accounts, where, _account, after=after, limit=limit, within=of_project
            )

    async def get(self, organization_id: str, project_id: str, account_id: str) -> ServiceAccount:
        """One account."""
        async with self._storage.read() as connection:
            await projects.fetch(connection, organization_id, project_id)
            return await _fetch(connection, project_id, account_id)

    async def update(
        self,
        organization_id: str,
        project_id: str,
        account_id: str,
        *,
        name: str | None = None,
        role: str | None = None,
    ) -> ServiceAccount:
        """Change what is given."""
        changes: dict[str, Any] = {}
        if name is not None:
            changes["name"] = checked_name(name)
        if role is not None:
            if role not in ROLES:
                raise InvalidValue("role", f"'role' must be one of {', '.join(ROLES)}.")
            changes["role"] = role
        async with self._storage.write() as connection:
            await projects.fetch_active(connection, organization_id, project_id)
            account = await _fetch(connection, project_id, account_id)
            if not changes:
                return account
            await connection.execute(update(service_accounts).where(_this(account_id)).values(changes))
            details = {"id": account_id, "changes_requested": changes}
            await record(
                connection, Act("service_account.updated", organization_id, account_id, project_id, details)
            )
            return await _fetch(connection, project_id, account_id)

    async def delete(self, organization_id: str, project_id: str, account_id: str) -> None:
        """The account's keys stop working at once."""

        async def work() -> None:
            try:
                async with self._storage.write() as connection:
                    await projects.fetch(connection, organization_id, project_id)
                    await self._delete(connection, organization_id, project_id, account_id)
            finally:
                self._forget(project_id)

        await self._storage.to_the_end(work())

    async def _delete(
        self, connection: AsyncConnection, organization_id: str, project_id: str, account_id: str
    ) -> None:
        await _fetch(connection, project_id, account_id)
        at = now_ms()
        await connection.execute(update(service_accounts).where(_this(account_id)).values(deleted_ms=at))
        of_account = (api_keys.c.service_account_id == account_id) & api_keys.c.revoked_ms.is_(None)
        revoked = (await connection.scalars(select(api_keys.c.id).where(of_account))).all()
        await connection.execute(update(api_keys).where(of_account).values(revoked_ms=at))
        acts = [
            Act("api_key.deleted", organization_id, key_id, project_id, {"id": key_id}) for key_id in revoked
        ]
        gone = Act("service_account.deleted", organization_id, account_id, project_id, {"id": account_id})
        await record(connection, gone, *acts)

    async def _key(
        self,
        connection: AsyncConnection,
        organization_id: str,
        account: ServiceAccount,
        name: str,
        expires_at: int | None,
        scopes: frozenset[str],
    ) -> Made:
        new = keys.NewKey(KeyKind.PROJECT, name, organization_id, account, expires_at, scopes)
        key_and_secret = await keys.add(connection, self._pepper, new)
        await record(connection, keys.created(key_and_secret[0]))
        return key_and_secret

    def _made(self, result: Made) -> Made:
        self._welcome(digest(self._pepper, result[1]))
        return result


async def _add(
    connection: AsyncConnection, organization_id: str, project_id: str, name: str, role: str
) -> ServiceAccount:
    account_id, created_ms = new_id("svc_"), now_ms()
    row = {"id": account_id, "project_id": project_id, "name": checked_name(name), "role": role}
    await connection.execute(insert(service_accounts).values(**row, created_ms=created_ms))
    details = {"id": account_id, "data": {"name": name, "role": role}}
    await record(connection, Act("service_account.created", organization_id, account_id, project_id, details))
    return ServiceAccount(account_id, project_id, name, role, created_ms // 1000)


async def _fetch(connection: AsyncConnection, project_id: str, account_id: str) -> ServiceAccount:
    statement = select(service_accounts).where(
        _this(account_id),
        service_accounts.c.project_id == project_id,
        service_accounts.c.deleted_ms.is_(None),
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise NotFound("No such service account.")
    return _account(row)


def _this(account_id: str) -> ColumnElement[bool]:
    return service_accounts.c.id == account_id


def _account(row: RowMapping) -> ServiceAccount:
    return ServiceAccount(row["id"], row["project_id"], row["name"], row["role"], row["created_ms"] // 1000)
