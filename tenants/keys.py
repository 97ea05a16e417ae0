"""Keys in the database: only a keyed hash of each secret is there."""

import hmac
import re
from dataclasses import dataclass

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants import organizations, projects
from tenants.errors import CredentialReason, InvalidValue, NotFound
from tenants.secrets import digest, new_id, new_secret, redacted
from tenants.storage import ANSWER_TIMEOUT_S, Storage, checked_name, now_ms, page_of, seconds
from tenants.tables import api_keys
from tenants.tables import organizations as organizations_table
from tenants.tables import projects as projects_table
from tenants.types import ALL_SCOPES, ApiKey, KeyKind, Organization, Page, Principal

_SCOPE = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_MAX_SCOPES = 16
_FAR_FUTURE = 253_402_300_799
"""The last second of the year 9999."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key as authentication needs it: whom it stands for, or why it is refused."""

    principal: Principal
    expires_at: int | None
    refusal: CredentialReason | None

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
        return await _insert(connection, pepper, KeyKind.ROOT, "root key")


async def create_admin(
    storage: Storage, pepper: bytes, organization_id: str, name: str
) -> tuple[ApiKey, str]:
    """Raises `NotFound` where there is no such organization."""
    async with storage.write() as connection:
        table = organizations_table
        known = select(table.c.id).where(table.c.id == organization_id)
        if await connection.scalar(known) is None:
            raise NotFound("No such organization.")
        return await _insert(connection, pepper, KeyKind.ADMIN, name, organization_id=organization_id)


async def create_with_organization(
    storage: Storage, pepper: bytes, slug: str, name: str | None, key_name: str
) -> tuple[Organization, tuple[ApiKey, str]]:
    """An organization and its first admin key, both or none. Raises `Conflict` where the slug is taken."""
    async with storage.write() as connection:
        made = await organizations.add(connection, slug, name)
        return made, await _insert(connection, pepper, KeyKind.ADMIN, key_name, organization_id=made.id)


async def create_of_project(
    storage: Storage,
    pepper: bytes,
    organization_id: str,
    project_id: str,
    name: str,
    *,
    expires_at: int | None,
    scopes: frozenset[str],
) -> tuple[ApiKey, str]:
    """Raises `NotFound` for an unknown project, `InvalidValue` for an archived one or a bad value."""
    created_ms = now_ms()
    if expires_at is not None and not created_ms // 1000 < expires_at <= _FAR_FUTURE:
        raise InvalidValue("expires_at", "'expires_at' must be in the future, in unix seconds.")
    if not 1 <= len(scopes) <= _MAX_SCOPES or not all(_SCOPE.fullmatch(scope) for scope in scopes):
        raise InvalidValue("scopes", "'scopes' must be names of scopes, such as 'model.request'.")
    async with storage.write() as connection:
        project = await projects.fetch(connection, organization_id, project_id)
        if project.status != "active":
            raise InvalidValue("project_id", "The project is archived.")
        return await _insert(
            connection,
            pepper,
            KeyKind.PROJECT,
            name,
            organization_id=organization_id,
            project_id=project_id,
            expires_at=expires_at,
            scopes=scopes,
        )


async def _insert(
    connection: AsyncConnection,
    pepper: bytes,
    kind: KeyKind,
    name: str,
    *,
    organization_id: str | None = None,
    project_id: str | None = None,
    expires_at: int | None = None,
    scopes: frozenset[str] = ALL_SCOPES,
) -> tuple[ApiKey, str]:
    secret = new_secret(kind)
    created_ms = now_ms()
    key = ApiKey(
        id=new_id("key_"),
        kind=kind,
        organization_id=organization_id,
        project_id=project_id,
        name=checked_name(name),
        prefix=redacted(kind, secret),
        owner_user_id=None,
        scopes=scopes,
        created_at=created_ms // 1000,
        expires_at=expires_at,
        revoked_at=None,
        last_used_at=None,
    )
    row = {
        "id": key.id,
        "kind": kind.value,
        "organization_id": organization_id,
        "project_id": project_id,
        "name": name,
        "prefix": key.prefix,
        "digest": digest(pepper, secret),
        "scopes": " ".join(sorted(scopes)),
        "created_ms": created_ms,
        "expires_ms": None if expires_at is None else expires_at * 1000,
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
) -> Page[ApiKey]:
    """Keys of that kind that are not revoked, the oldest first."""
    own = _own(organization_id, project_id)
    where = [own, api_keys.c.kind == kind.value, api_keys.c.revoked_ms.is_(None)]
    async with storage.read() as connection:
        return await page_of(connection, api_keys, where, _key, after=after, limit=limit, within=own)


async def get(storage: Storage, organization_id: str, key_id: str, project_id: str | None) -> ApiKey:
    """Raises `NotFound`, for a revoked key as well."""
    statement = select(api_keys).where(
        api_keys.c.id == key_id, _own(organization_id, project_id), api_keys.c.revoked_ms.is_(None)
    )
    async with storage.read() as connection:
        row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise NotFound("No such key.")
    return _key(row)


async def revoke(storage: Storage, organization_id: str, key_id: str, project_id: str | None) -> ApiKey:
    """Raises `NotFound`, for a key that is revoked already as well."""
    this = (api_keys.c.id == key_id) & _own(organization_id, project_id)
    async with storage.write() as connection:
        revoked = await connection.execute(
            update(api_keys).where(this, api_keys.c.revoked_ms.is_(None)).values(revoked_ms=now_ms())
        )
        if revoked.rowcount == 0:
            raise NotFound("No such key.")
        row = (await connection.execute(select(api_keys).where(this))).mappings().one()
    return _key(row)


async def find(storage: Storage, key_digest: bytes) -> KnownKey | None:
    """The key with this digest, whatever its state; ``None`` where there is none."""
    row = await _found(storage, api_keys.c.digest == key_digest)
    return _known(row) if row is not None and hmac.compare_digest(row["digest"], key_digest) else None


async def find_by_id(storage: Storage, key_id: str) -> KnownKey | None:
    """As `find`, for a key that something else vouches for."""
    row = await _found(storage, api_keys.c.id == key_id)
    return None if row is None else _known(row)


async def find_project(storage: Storage, project_id: str) -> KnownKey | None:
    """The project as something that a token may speak for: no key, no user and no scopes."""
    projects_, organizations_ = projects_table, organizations_table
    statement = (
        select(projects_.c.organization_id, organizations_.c.slug, projects_.c.archived_ms)
        .join(organizations_, organizations_.c.id == projects_.c.organization_id)
        .where(projects_.c.id == project_id)
    )
    async with storage.read(ANSWER_TIMEOUT_S) as connection:
        row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        return None
    principal = Principal(
        kind=KeyKind.PROJECT,
        key_id="",
        organization_id=row["organization_id"],
        organization=row["slug"],
        project_id=project_id,
        user_id=None,
        scopes=frozenset(),
    )
    return KnownKey(principal, None, None if row["archived_ms"] is None else "archived")


async def _found(storage: Storage, which: ColumnElement[bool]) -> RowMapping | None:
    statement = (
        select(api_keys, organizations_table.c.slug, projects_table.c.archived_ms)
        .outerjoin(organizations_table, organizations_table.c.id == api_keys.c.organization_id)
        .outerjoin(projects_table, projects_table.c.id == api_keys.c.project_id)
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
    key = _key(row)
    principal = Principal(
        kind=key.kind,
        key_id=key.id,
        organization_id=key.organization_id,
        organization=row["slug"],
        project_id=key.project_id,
        user_id=key.owner_user_id,
        scopes=key.scopes,
    )
    return KnownKey(principal, key.expires_at, refusal)


def _own(organization_id: str, project_id: str | None) -> ColumnElement[bool]:
    own = api_keys.c.organization_id == organization_id
    return own if project_id is None else own & (api_keys.c.project_id == project_id)


def _key(row: RowMapping) -> ApiKey:
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
    )
