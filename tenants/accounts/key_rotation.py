"""What happens to keys between their creation and their end: other scopes, another expiry, rotation."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import case, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.accounts import keys, projects
from tenants.audit import Act, record
from tenants.errors import InvalidValue, NotFound
from tenants.secrets import new_id
from tenants.storage import Storage, now_ms, seconds
from tenants.tables import api_keys, subject_limits
from tenants.types import ApiKey, KeyKind

MAX_OVERLAP_S = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Rotation:
    """The new key and its secret, and the old one, with the end that it has now as its expiry."""

    key: ApiKey
    secret: str
    old: ApiKey


async def change(
    storage: Storage,
    organization_id: str,
    project_id: str,
    key_id: str,
    *,
    scopes: frozenset[str] | None,
    expires_at: int | None,
) -> ApiKey:
    """Change what is given of a project's key. Raises `NotFound`, and `InvalidValue` for an expired one."""
    changes: dict[str, Any] = {}
    requested: dict[str, Any] = {}
    if scopes is not None:
        changes["scopes"] = " ".join(sorted(keys.checked_scopes(scopes)))
        requested["scopes"] = sorted(scopes)
    if keys.checked_expiry(expires_at, "expires_in_seconds") is not None and expires_at is not None:
        changes["expires_ms"] = expires_at * 1000
        requested["expires_in_seconds"] = expires_at - now_ms() // 1000
    async with storage.write() as connection:
        await projects.fetch_active(connection, organization_id, project_id)
        key = await keys.fetch(connection, organization_id, key_id, project_id, KeyKind.PROJECT)
        _refuse_expired(key)
        if not changes:
            return key
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(changes))
        details = {"id": key_id, "changes_requested": requested}
        await record(connection, Act("api_key.updated", organization_id, key_id, project_id, details))
        return await keys.fetch(connection, organization_id, key_id)


async def rotate(
    storage: Storage, pepper: bytes, organization_id: str, key_id: str, overlap_s: int
) -> Rotation:
    """A new key in the place of an old one, which goes on working for ``overlap_s`` seconds.

    The new one has the old one's name, account, scopes and limits, and lives for as long as the old one was
    to live in all. Raises `NotFound`, and `InvalidValue` for an expired key or an overlap out of range.
    """
    if not 0 <= overlap_s <= MAX_OVERLAP_S:
        message = f"'overlap_seconds' must be between 0 and {MAX_OVERLAP_S}."
        raise InvalidValue("overlap_seconds", message)
    async with storage.write() as connection:
        old = await keys.fetch(connection, organization_id, key_id)
        if old.project_id is not None:
            await projects.fetch_active(connection, organization_id, old.project_id)
        _refuse_expired(old)
        expires_at = old.expires_at
        at_ms = now_ms()
        # Before the new key is made, so a key that is revoked at the same time has no successor.
        old = await _end(connection, old, at_ms, overlap_s)
        lifetime_s = None if expires_at is None else expires_at - old.created_at
        new = keys.NewKey(
            old.kind,
            old.name,
            organization_id,
            old.service_account,
            None if lifetime_s is None else at_ms // 1000 + lifetime_s,
            old.scopes,
        )
        key, secret = await keys.add(connection, pepper, new)
        await _copy_limits(connection, organization_id, key_id, key.id)
        details = {"id": key_id, "replaced_by": key.id, "expires_at": old.expires_at}
        rotated = Act("torpor.api_key.rotated", organization_id, key_id, old.project_id, details)
        await record(connection, rotated, keys.created(key))
    return Rotation(key, secret, old)


async def _end(connection: AsyncConnection, old: ApiKey, at_ms: int, overlap_s: int) -> ApiKey:
    """The old key with the end that it has now, which is never later than it was."""
    ends_ms = at_ms // 1000 * 1000 + overlap_s * 1000
    expires = api_keys.c.expires_ms
    ending: dict[str, Any] = {"expires_ms": case((expires < ends_ms, expires), else_=ends_ms)}
    if overlap_s == 0:
        ending["revoked_ms"] = at_ms
    is_old = (api_keys.c.id == old.id) & api_keys.c.revoked_ms.is_(None)
    ended = await connection.execute(update(api_keys).where(is_old).values(ending))
    if ended.rowcount == 0:
        raise NotFound("No such key.")
    expires_ms = await connection.scalar(select(expires).where(api_keys.c.id == old.id))
    return replace(old, expires_at=seconds(expires_ms))


async def _copy_limits(connection: AsyncConnection, organization_id: str, old_id: str, new_id_: str) -> None:
    """A key that replaces another is held to what that one was held to."""
    table = subject_limits
    of_key = (table.c.organization_id == organization_id) & (table.c.subject_type == "key")
    statement = select(table).where(of_key, table.c.subject_id == old_id)
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is not None:
        fresh = {"id": new_id("lim_"), "subject_id": new_id_, "created_ms": now_ms()}
        await connection.execute(insert(table).values({**row, **fresh}))


def _refuse_expired(key: ApiKey) -> None:
    if key.expires_at is not None and key.expires_at <= now_ms() // 1000:
        raise InvalidValue("key_id", "The key has expired: create a new one.")
