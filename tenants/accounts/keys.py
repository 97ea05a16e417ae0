"""Keys in the database: only a keyed hash of each secret is there."""

import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.accounts import organizations
from tenants.audit import Act, record
from tenants.errors import CredentialReason, InvalidValue, NotFound
from tenants.scopes import SCOPES
from tenants.secrets import digest, new_id, new_secret, redacted
from tenants.storage import ANSWER_TIMEOUT_S, Storage, checked_name, now_ms, page_of, seconds
from tenants.tables import api_keys, model_permissions, service_accounts, users
from tenants.tables import organizations as organizations_table
from tenants.tables import projects as projects_table
from tenants.types import (
    ALL_SCOPES,
    PRINCIPALS,
    ApiKey,
    KeyKind,
    ModelPermissions,
    Organization,
    Page,
    PermissionMode,
    Principal,
    ProjectPrincipal,
    ServiceAccount,
)

_FAR_FUTURE = 253_402_300_799
"""The last second of the year 9999."""


_ARCHIVED = func.coalesce(projects_table.c.archived_ms, organizations_table.c.archived_ms).label(
    "archived_ms"
)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key as authentication needs it: whom it stands for, or why it is refused.

    ``removed_users``: users of the organization that tokens may no longer speak for. ``expires_at`` is
    in unix seconds, ``kept_until`` of a clock that is never set: until then it may be remembered.
    """

    principal: Principal
    expires_at: int | None
    refusal: CredentialReason | None
    removed_users: frozenset[str] = frozenset()
    kept_until: float = math.inf

    def subjects(self) -> frozenset[str | None]:
        """Whose changes concern it."""
        who = self.principal
        return frozenset({who.key_id, who.project_id, who.organization_id, who.kind})


async def create_root(storage: Storage, pepper: bytes, *, alone: bool) -> tuple[ApiKey, str]:
    """A root key; ``alone`` revokes every earlier one in the same transaction."""
    async with storage.write() as connection:
        if alone:
            others = update(api_keys).where(api_keys.c.kind == KeyKind.ROOT, api_keys.c.revoked_ms.is_(None))
            await connection.execute(others.values(revoked_ms=now_ms()))
        key_and_secret = await add(connection, pepper, NewKey(KeyKind.ROOT, "root key"))
        await record(connection, Act("torpor.root_key.created", None, key_and_secret[0].id))
        return key_and_secret


async def create_admin(
    storage: Storage, pepper: bytes, organization_id: str, name: str, expires_at: int | None = None
) -> tuple[ApiKey, str]:
    """Create an admin key. Raises `NotFound`, and `InvalidValue` for an archived organization."""
    new = NewKey(KeyKind.ADMIN, name, organization_id, expires_at=checked_expiry(expires_at))
    async with storage.write() as connection:
        await organizations.fetch_active(connection, organization_id)
        key_and_secret = await add(connection, pepper, new)
        await record(connection, created(key_and_secret[0]))
        return key_and_secret


async def create_with_organization(
    storage: Storage, pepper: bytes, slug: str, name: str | None, key_name: str
) -> tuple[Organization, tuple[ApiKey, str]]:
    """An organization and its first admin key, both or none. Raises `Conflict` where the slug is taken."""
    async with storage.write() as connection:
        organization = await organizations.add(connection, slug, name)
        key_and_secret = await add(connection, pepper, NewKey(KeyKind.ADMIN, key_name, organization.id))
        await record(connection, created(key_and_secret[0]))
        return organization, key_and_secret


def created(key: ApiKey) -> Act:
    """The act of making the key."""
    details = {"id": key.id, "data": {"scopes": sorted(key.scopes)}}
    return Act("api_key.created", key.organization_id, key.id, key.project_id, details)


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is to be; its values have been checked."""

    kind: KeyKind
    name: str
    organization_id: str | None = None
    service_account: ServiceAccount | None = None
    expires_at: int | None = None
    scopes: frozenset[str] = ALL_SCOPES


def checked_expiry(expires_at: int | None, name: str = "expires_at") -> int | None:
    """The time; raises `InvalidValue` where it is past, or later than a calendar can tell."""
    if expires_at is not None and not now_ms() // 1000 < expires_at <= _FAR_FUTURE:
        raise InvalidValue(name, f"'{name}' must lead to a time in the future, before the year 10000.")
    return expires_at


def checked_scopes(scopes: frozenset[str]) -> frozenset[str]:
    """The scopes; raises `InvalidValue` if there are none, or unknown ones."""
    if not scopes or not scopes <= SCOPES:
        raise InvalidValue("scopes", f"'scopes' must be some of {', '.join(sorted(SCOPES))}.")
    return scopes


async def add(connection: AsyncConnection, pepper: bytes, new: NewKey) -> tuple[ApiKey, str]:
    """Insert a key, and return it and its secret."""
    secret = new_secret(new.kind)
    created_ms = now_ms()
    account = new.service_account
    key = ApiKey(
        id=new_id("key_"),
        kind=new.kind,
        organization_id=new.organization_id,
        project_id=account.project_id if account else None,
        name=checked_name(new.name),
        prefix=redacted(new.kind, secret),
        owner_user_id=None,
        scopes=new.scopes,
        created_at=created_ms // 1000,
        expires_at=new.expires_at,
        revoked_at=None,
        last_used_at=None,
        service_account=account,
    )
    row = {
        "id": key.id,
        "kind": key.kind.value,
        "organization_id": key.organization_id,
        "project_id": key.project_id,
        "service_account_id": account.id if account else None,
        "name": key.name,
        "prefix": key.prefix,
        "digest": digest(pepper, secret),
        "scopes": " ".join(sorted(key.scopes)),
        "created_ms": created_ms,
        "expires_ms": None if key.expires_at is None else key.expires_at * 1000,
    }
    await connection.execute(insert(api_keys).values(row))
    return key, secret


async def listed(
    storage: Storage,
    organization_id: str,
    project_id: str | None,
    kind: KeyKind,
    after: str | None,
    limit: int,
    *,
    newest_first: bool = False,
) -> Page[ApiKey]:
    """Keys of that kind that are not revoked."""
    condition = _own(organization_id, project_id) & (api_keys.c.kind == kind.value)
    where = [condition, api_keys.c.revoked_ms.is_(None)]
    async with storage.read() as connection:
        return await page_of(
            connection,
            api_keys,
            where,
            _key,
            after=after,
            limit=limit,
            within=condition,
            statement=_with_account(),
            newest_first=newest_first,
        )


async def get(
    storage: Storage, organization_id: str, key_id: str, project_id: str | None, kind: KeyKind | None = None
) -> ApiKey:
    """Return a key. Raises `NotFound`, for a revoked key and for a key of another kind as well."""
    async with storage.read() as connection:
        return await fetch(connection, organization_id, key_id, project_id, kind)


async def fetch(
    connection: AsyncConnection,
    organization_id: str,
    key_id: str,
    project_id: str | None = None,
    kind: KeyKind | None = None,
) -> ApiKey:
    """As `get`, on a connection that the caller has."""
    statement = _with_account().where(
        api_keys.c.id == key_id, _own(organization_id, project_id), api_keys.c.revoked_ms.is_(None)
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None or (kind is not None and row["kind"] != kind):
        raise NotFound("No such key.")
    return _key(row)


async def revoke(
    storage: Storage, organization_id: str, key_id: str, project_id: str | None, kind: KeyKind | None = None
) -> ApiKey:
    """Revoke a key. Raises `NotFound`, for a key that was revoked before as well."""
    async with storage.write() as connection:
        key = await fetch(connection, organization_id, key_id, project_id, kind)
        revoked = await connection.execute(
            update(api_keys)
            .where(api_keys.c.id == key_id, api_keys.c.revoked_ms.is_(None))
            .values(revoked_ms=now_ms())
        )
        if revoked.rowcount == 0:
            raise NotFound("No such key.")
        await record(connection, deleted(key))
        row = (await connection.execute(_with_account().where(api_keys.c.id == key_id))).mappings().one()
    return _key(row)


def deleted(key: ApiKey) -> Act:
    """The act of revoking the key."""
    return Act("api_key.deleted", key.organization_id, key.id, key.project_id, {"id": key.id})


async def find(storage: Storage, key_digest: bytes) -> KnownKey | None:
    """The key with this digest, whatever its state; ``None`` if there is none."""
    row = await _found(storage, api_keys.c.digest == key_digest)
    return _known(row) if row is not None and hmac.compare_digest(row["digest"], key_digest) else None


async def find_by_id(storage: Storage, key_id: str) -> KnownKey | None:
    """As `find`, for a key that something else vouches for."""
    row = await _found(storage, api_keys.c.id == key_id)
    return None if row is None else _known(row)


async def find_project(storage: Storage, project_id: str) -> KnownKey | None:
    """The project as something that a token may speak for: no key, no user and no scopes."""
    projects_, organizations_, models = projects_table, organizations_table, model_permissions
    statement = (
        select(
            projects_.c.organization_id,
            _ARCHIVED,
            organizations_.c.slug,
            models.c.mode,
            models.c.model_ids,
        )
        .join(organizations_, organizations_.c.id == projects_.c.organization_id)
        .outerjoin(models, models.c.project_id == projects_.c.id)
        .where(projects_.c.id == project_id)
    )
    async with storage.read(ANSWER_TIMEOUT_S) as connection:
        row = (await connection.execute(statement)).mappings().one_or_none()
        if row is None:
            return None
        removed = select(users.c.id).where(
            users.c.organization_id == row["organization_id"], users.c.removed_ms.is_not(None)
        )
        removed_users = frozenset(await connection.scalars(removed))
    principal = ProjectPrincipal(
        kind=KeyKind.PROJECT,
        key_id="",
        organization_id=row["organization_id"],
        organization=row["slug"],
        project_id=project_id,
        user_id=None,
        scopes=frozenset(),
        permissions=permissions_of(row),
    )
    return KnownKey(principal, None, None if row["archived_ms"] is None else "archived", removed_users)


async def _found(storage: Storage, which: ColumnElement[bool]) -> RowMapping | None:
    statement = (
        select(
            api_keys,
            organizations_table.c.slug,
            _ARCHIVED,
            model_permissions.c.mode,
            model_permissions.c.model_ids,
        )
        .outerjoin(organizations_table, organizations_table.c.id == api_keys.c.organization_id)
        .outerjoin(projects_table, projects_table.c.id == api_keys.c.project_id)
        .outerjoin(model_permissions, model_permissions.c.project_id == api_keys.c.project_id)
        .where(which)
    )
    async with storage.read(ANSWER_TIMEOUT_S) as connection:
        return (await connection.execute(statement)).mappings().one_or_none()


def _known(row: RowMapping) -> KnownKey:
    refusal: CredentialReason | None = None
    if row["revoked_ms"] is not None:
        refusal = "revoked"
    elif row["archived_ms"] is not None:
        refusal = "archived"
    kind = KeyKind(row["kind"])
    principal = PRINCIPALS[kind](
        kind=kind,
        key_id=row["id"],
        organization_id=row["organization_id"],
        organization=row["slug"],
        project_id=row["project_id"],
        user_id=row["owner_user_id"],
        scopes=frozenset(row["scopes"].split()),
        permissions=permissions_of(row),
    )
    return KnownKey(principal, seconds(row["expires_ms"]), refusal)


def permissions_of(row: Mapping[Any, Any]) -> ModelPermissions | None:
    """The permissions in the columns ``mode`` and ``model_ids``; ``None`` where they are null."""
    if row["mode"] is None:
        return None
    return ModelPermissions(PermissionMode(row["mode"]), frozenset(json.loads(row["model_ids"])))


def _own(organization_id: str, project_id: str | None) -> ColumnElement[bool]:
    condition = api_keys.c.organization_id == organization_id
    return condition if project_id is None else condition & (api_keys.c.project_id == project_id)


def _with_account() -> Select[Any]:
    account = service_accounts.c
    return select(
        api_keys,
        account.name.label("account_name"),
        account.role.label("account_role"),
        account.created_ms.label("account_created_ms"),
    ).outerjoin(service_accounts, account.id == api_keys.c.service_account_id)


def _key(row: RowMapping) -> ApiKey:
    account = None
    if row["service_account_id"] is not None:
        account = ServiceAccount(
            id=row["service_account_id"],
            project_id=row["project_id"],
            name=row["account_name"],
            role=row["account_role"],
            created_at=row["account_created_ms"] // 1000,
        )
    return ApiKey(
        id=row["id"],
        kind=KeyKind(row["kind"]),
        organization_id=row["organization_id"],
        project_id=row["project_id"],
        name=row["name"],
        prefix=row["prefix"],
        owner_user_id=row["owner_user_id"],
        scopes=frozenset(row["scopes"].split()),
        created_at=row["created_ms"] // 1000,
        expires_at=seconds(row["expires_ms"]),
        revoked_at=seconds(row["revoked_ms"]),
        last_used_at=seconds(row["last_used_ms"]),
        service_account=account,
    )
