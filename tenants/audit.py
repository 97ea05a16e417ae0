"""The audit log: every administrative act, written in the transaction of the act itself."""

import json
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, insert, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.secrets import new_id
from tenants.storage import Storage, page_of
from tenants.tables import audit_logs, projects
from tenants.types import KeyKind, Page

_MAX_ADDRESS = 64
_MAX_USER_AGENT = 256


@dataclass(frozen=True, slots=True)
class Actor:
    """Whose key it was, and from where it came: an address, and what the client calls itself."""

    key_id: str
    kind: KeyKind
    address: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act. Without an ``actor`` a command on the host itself did it. ``at`` is in unix seconds."""

    id: str
    type: str
    at: int
    actor: Actor | None
    project_id: str | None
    project_name: str | None
    resource_id: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries; empty sets and ``None`` do not filter. Times in unix seconds, both inclusive."""

    first_at: int | None = None
    last_at: int | None = None
    types: frozenset[str] = frozenset()
    project_ids: frozenset[str] = frozenset()
    actor_ids: frozenset[str] = frozenset()
    resource_ids: frozenset[str] = frozenset()
    after: str | None = None
    before: str | None = None
    limit: int = 20

    def conditions(self) -> list[ColumnElement[bool]]:
        """As conditions on the table."""
        table = audit_logs.c
        conditions: list[ColumnElement[bool]] = []
        if self.first_at is not None:
            conditions.append(table.created_ms >= self.first_at * 1000)
        if self.last_at is not None:
            conditions.append(table.created_ms < (self.last_at + 1) * 1000)
        sets = (
            (table.type, self.types),
            (table.project_id, self.project_ids),
            (table.actor_key_id, self.actor_ids),
            (table.resource_id, self.resource_ids),
        )
        return conditions + [column.in_(values) for column, values in sets if values]


_acting: ContextVar[Actor | None] = ContextVar("acting", default=None)


def act_as(actor: Actor) -> None:
    """Whatever is done in this task, and in those that it starts, is recorded as this actor's."""
    _acting.set(actor)


@dataclass(frozen=True, slots=True)
class Act:
    """What is done: ``type`` is an event of OpenAI's, or one of Torpor's own; ``details`` become JSON."""

    type: str
    organization_id: str | None
    resource_id: str
    project_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


async def record(connection: AsyncConnection, *acts: Act) -> None:
    """Write entries in the caller's transaction: an act that is not recorded has not happened."""
    actor = _acting.get()
    rows = [_row(act, actor) for act in acts]
    await connection.execute(insert(audit_logs), rows)


def _row(act: Act, actor: Actor | None) -> dict[str, Any]:
    now_ns = time.time_ns()
    return {
        # Nanoseconds: entries of one millisecond are in order as well.
        "id": new_id(f"audit_log-{now_ns:016x}"),
        "organization_id": act.organization_id,
        "type": act.type,
        "created_ms": now_ns // 1_000_000,
        "actor_key_id": actor.key_id if actor else None,
        "actor_kind": actor.kind.value if actor else None,
        "address": _shortened(actor.address, _MAX_ADDRESS) if actor else None,
        "user_agent": _shortened(actor.user_agent, _MAX_USER_AGENT) if actor else None,
        "project_id": act.project_id,
        "resource_id": act.resource_id,
        "details": json.dumps(act.details, separators=(",", ":")),
    }


def _shortened(text: str | None, most: int) -> str | None:
    return None if text is None else text[:most].replace("\0", "")


_ENTRIES: Sequence[Any] = (audit_logs, projects.c.name.label("project_name"))


class AuditLog:
    """The log as a whole. Methods raise `StorageUnavailable` where the database fails."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def write(self, act: Act) -> None:
        """Record an act that is about to begin, and change nothing in the database itself."""
        async with self._storage.write() as connection:
            await record(connection, act)

    async def listed(self, organization_id: str | None, query: AuditQuery) -> Page[AuditEntry]:
        """The newest first: what concerns the organization, or without one, the host itself.

        Raises `InvalidValue` for a cursor or limit that is none.
        """
        table = audit_logs.c.organization_id
        of_organization = table.is_(None) if organization_id is None else table == organization_id
        statement = select(*_ENTRIES).outerjoin(projects, projects.c.id == audit_logs.c.project_id)
        async with self._storage.read() as connection:
            return await page_of(
                connection,
                audit_logs,
                [of_organization, *query.conditions()],
                _entry,
                after=query.after,
                before=query.before,
                limit=query.limit,
                within=of_organization,
                statement=statement,
                newest_first=True,
            )


def _entry(row: RowMapping) -> AuditEntry:
    actor = None
    if row["actor_key_id"] is not None:
        actor = Actor(row["actor_key_id"], KeyKind(row["actor_kind"]), row["address"], row["user_agent"])
    return AuditEntry(
        id=row["id"],
        type=row["type"],
        at=row["created_ms"] // 1000,
        actor=actor,
        project_id=row["project_id"],
        project_name=row["project_name"],
        resource_id=row["resource_id"],
        details=json.loads(row["details"]),
    )
