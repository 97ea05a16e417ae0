"""Spend alerts in the database: who is told, and at which spend of the month."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from tenants.accounts import projects
from tenants.audit import Act, record
from tenants.errors import InvalidValue, NotFound
from tenants.limits.spend_limits import MAX_CENTS
from tenants.secrets import new_id
from tenants.storage import Storage, now_ms, page_of
from tenants.tables import organizations, spend_alerts
from tenants.types import Page

MAX_ALERTS = 100
"""Of one project, or of an organization's own."""
MAX_ALERTS_IN_ALL = 500
"""Of an organization with all its projects."""


@dataclass(frozen=True, slots=True)
class SpendAlert:
    """Tells ``channel`` when ``subject_id`` (a project or an organization) has spent so much in a month.

    ``channel`` is the JSON object of the wire; what is in it is the gateway's concern.
    """

    id: str
    organization_id: str
    project_id: str | None
    threshold_cents: int
    channel: Mapping[str, Any]

    @property
    def subject_id(self) -> str:
        """Whose spend counts."""
        return self.project_id or self.organization_id


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """Which page of a list."""

    after: str | None = None
    before: str | None = None
    limit: int = 20
    newest_first: bool = False


class SpendAlertStore:
    """Alerts of organizations and projects; ``project_id`` is ``None`` for the organization's own.

    Every method raises `StorageUnavailable` where the database fails, and `NotFound` for a project or an
    alert that the organization does not have.
    """

    def __init__(self, storage: Storage, *, max_in_all: int = MAX_ALERTS_IN_ALL) -> None:
        self._storage = storage
        self._max_in_all = max_in_all

    async def create(
        self, organization_id: str, project_id: str | None, cents: int, channel: Mapping[str, Any]
    ) -> SpendAlert:
        """Create an alert. Raises `InvalidValue` for an archived project, a wrong amount, one too many."""
        alert = SpendAlert(new_id("alert_"), organization_id, project_id, _checked(cents), channel)
        row = {
            "id": alert.id,
            "organization_id": organization_id,
            "project_id": project_id,
            "subject_id": alert.subject_id,
            "threshold_cents": cents,
            "channel": json.dumps(channel),
            "created_ms": now_ms(),
        }
        async with self._storage.write() as connection:
            await _take_turns(connection, organization_id)
            if project_id is not None:
                await projects.fetch_active(connection, organization_id, project_id)
            await self._check_room(connection, organization_id, project_id)
            await connection.execute(insert(spend_alerts).values(**row))
            await record(connection, _act("created", alert))
        return alert

    async def get(self, organization_id: str, project_id: str | None, alert_id: str) -> SpendAlert:
        """One alert."""
        async with self._storage.read() as connection:
            return await _fetch(connection, organization_id, project_id, alert_id)

    async def listed(
        self, organization_id: str, project_id: str | None, query: AlertQuery
    ) -> Page[SpendAlert]:
        """In order of creation. Raises `InvalidValue` for a cursor or limit that is none."""
        condition = _own(organization_id, project_id)
        async with self._storage.read() as connection:
            if project_id is not None:
                await projects.fetch(connection, organization_id, project_id)
            return await page_of(
                connection,
                spend_alerts,
                [condition, spend_alerts.c.deleted_ms.is_(None)],
                _alert,
                after=query.after,
                before=query.before,
                limit=query.limit,
                within=condition,
                newest_first=query.newest_first,
            )

    async def update(
        self,
        organization_id: str,
        project_id: str | None,
        alert_id: str,
        cents: int,
        channel: Mapping[str, Any],
    ) -> SpendAlert:
        """Another threshold or channel. Raises `InvalidValue` as `create` does."""
        alert = SpendAlert(alert_id, organization_id, project_id, _checked(cents), channel)
        async with self._storage.write() as connection:
            await _fetch(connection, organization_id, project_id, alert_id)
            if project_id is not None:
                await projects.fetch_active(connection, organization_id, project_id)
            changed = {"threshold_cents": cents, "channel": json.dumps(channel)}
            await connection.execute(
                update(spend_alerts).where(spend_alerts.c.id == alert_id).values(**changed)
            )
            await record(connection, _act("updated", alert))
        return alert

    async def delete(self, organization_id: str, project_id: str | None, alert_id: str) -> None:
        """Delete the alert with its pending notifications and its recipients."""
        async with self._storage.write() as connection:
            alert = await _fetch(connection, organization_id, project_id, alert_id)
            gone = update(spend_alerts).where(spend_alerts.c.id == alert_id)
            await connection.execute(gone.values(deleted_ms=now_ms(), channel="{}"))
            await record(connection, _act("deleted", alert))

    async def every(self) -> list[SpendAlert]:
        """The alerts of all organizations."""
        async with self._storage.read() as connection:
            statement = select(spend_alerts).where(spend_alerts.c.deleted_ms.is_(None))
            return [_alert(row) for row in (await connection.execute(statement)).mappings()]

    async def _check_room(
        self, connection: AsyncConnection, organization_id: str, project_id: str | None
    ) -> None:
        """Check that one more alert is allowed; raise `InvalidValue` if not."""
        alert = spend_alerts.c
        whose = "the organization itself" if project_id is None else "the project"
        for of, most, owner in (
            (_own(organization_id, project_id), MAX_ALERTS, whose),
            (
                alert.organization_id == organization_id,
                self._max_in_all,
                "the organization with its projects",
            ),
        ):
            counted = select(func.count()).select_from(spend_alerts).where(of, alert.deleted_ms.is_(None))
            if (await connection.scalar(counted) or 0) >= most:
                raise InvalidValue(
                    "threshold_amount",
                    f"There are {most} alerts of {owner} already, the maximum. "
                    "Delete one that is not needed.",
                )


def _own(organization_id: str, project_id: str | None) -> ColumnElement[bool]:
    condition = spend_alerts.c.subject_id == (project_id or organization_id)
    return condition & (spend_alerts.c.organization_id == organization_id)


async def _take_turns(connection: AsyncConnection, organization_id: str) -> None:
    """Until this transaction ends, no other one makes alerts of the organization: both would count the same.

    A write that changes nothing: it locks the row in PostgreSQL, and in SQLite the database.
    """
    statement = update(organizations).where(organizations.c.id == organization_id)
    await connection.execute(statement.values(name=organizations.c.name))


async def _fetch(
    connection: AsyncConnection, organization_id: str, project_id: str | None, alert_id: str
) -> SpendAlert:
    if project_id is not None:
        await projects.fetch(connection, organization_id, project_id)
    statement = select(spend_alerts).where(
        _own(organization_id, project_id), spend_alerts.c.id == alert_id, spend_alerts.c.deleted_ms.is_(None)
    )
    row = (await connection.execute(statement)).mappings().one_or_none()
    if row is None:
        raise NotFound("No such spend alert.")
    return _alert(row)


def _checked(cents: int) -> int:
    if not 0 <= cents <= MAX_CENTS:
        raise InvalidValue("threshold_amount", f"'threshold_amount' must be between 0 and {MAX_CENTS} cents.")
    return cents


def _act(what: str, alert: SpendAlert) -> Act:
    details: dict[str, Any] = {"id": alert.id}
    if what != "deleted":
        # An address of a webhook may be a secret in itself.
        channel = alert.channel.get("type")
        details["changes_requested"] = {"threshold_amount": alert.threshold_cents, "channel": channel}
    kind = f"torpor.spend_alert.{what}"
    return Act(kind, alert.organization_id, alert.id, alert.project_id, details)


def _alert(row: RowMapping) -> SpendAlert:
    return SpendAlert(
        row["id"],
        row["organization_id"],
        row["project_id"],
        row["threshold_cents"],
        json.loads(row["channel"]),
    )
