"""Notifications of spend alerts that wait to be delivered: a transactional outbox.

A notification is written once for each alert, month and threshold, whichever of several gateways sees the
spend first: the row's uniqueness decides. It keeps its id through all attempts and restarts. A gateway takes
it by moving its next attempt into the future, so two never try at the same time, and an attempt that was cut
off is made again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError

from tenants.alerts.spend_alerts import SpendAlert
from tenants.secrets import new_id
from tenants.storage import Storage
from tenants.tables import alert_notifications, organizations, projects, spend_alerts

_MAX_ERROR = 256
LONGEST_WAIT_MS = 24 * 3_600_000
"""No attempt is put off for longer. One that is due later was noted while the clock was ahead: it is due."""


@dataclass(frozen=True, slots=True)
class Notification:
    """What is to be told: the alert has seen ``spent_cents`` spent in the month that began at ``month``.

    ``threshold_cents`` is the threshold that was reached, also where the alert has another by now.
    ``attempts`` counts the one that this notification was taken for.
    """

    id: str
    alert: SpendAlert
    subject_name: str
    month: int
    threshold_cents: int
    spent_cents: int
    created_ms: int
    attempts: int


class Outbox:
    """The notifications of every organization. Every method raises `StorageUnavailable`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def fire(self, subject_id: str, month: int, spent_cents: int, now_ms: int) -> int:
        """Write the notifications that the spend has made due; returns how many are new."""
        alert, fired = spend_alerts.c, alert_notifications.c
        already_fired = select(fired.id).where(
            fired.alert_id == alert.id, fired.month == month, fired.threshold_cents == alert.threshold_cents
        )
        due = select(alert.id, alert.threshold_cents).where(
            alert.subject_id == subject_id,
            alert.deleted_ms.is_(None),
            alert.threshold_cents <= spent_cents,
            ~already_fired.exists(),
        )
        async with self._storage.read() as connection:
            rows = (await connection.execute(due)).all()
        written = 0
        for alert_id, threshold_cents in rows:
            row = {
                "id": new_id("msg_"),
                "alert_id": alert_id,
                "month": month,
                "threshold_cents": threshold_cents,
                "spent_cents": spent_cents,
                "created_ms": now_ms,
                "attempts": 0,
                "next_attempt_ms": now_ms,
            }
            try:
                async with self._storage.write() as connection:
                    await connection.execute(insert(alert_notifications).values(**row))
            except IntegrityError:
                continue
            written += 1
        return written

    async def unfired(self, month: int) -> frozenset[str]:
        """The organizations with an alert that has not fired in this month."""
        alert, fired = spend_alerts.c, alert_notifications.c
        already_fired = select(fired.id).where(
            fired.alert_id == alert.id, fired.month == month, fired.threshold_cents == alert.threshold_cents
        )
        statement = select(alert.organization_id).where(alert.deleted_ms.is_(None), ~already_fired.exists())
        async with self._storage.read() as connection:
            return frozenset((await connection.execute(statement.distinct())).scalars())

    async def next_attempt_ms(self) -> int | None:
        """When the next attempt is due; ``None`` where nothing waits."""
        earliest = select(func.min(alert_notifications.c.next_attempt_ms))
        async with self._storage.read() as connection:
            attempt_ms: int | None = await connection.scalar(earliest)
        return attempt_ms

    async def take(self, now_ms: int, again_ms: int, most: int) -> list[Notification]:
        """The notifications that are due, at most so many, each counted as attempted once more.

        Organizations take turns, so one with many failing notifications does not delay the others.
        Until ``again_ms`` no other gateway gets them; what has not been settled by then is due again.
        """
        fired = alert_notifications.c
        turn = func.row_number().over(
            partition_by=spend_alerts.c.organization_id, order_by=fired.next_attempt_ms
        )
        due = (
            select(
                alert_notifications,
                spend_alerts.c.organization_id,
                spend_alerts.c.project_id,
                spend_alerts.c.channel,
                spend_alerts.c.deleted_ms,
                func.coalesce(projects.c.name, organizations.c.name).label("subject_name"),
            )
            .join(spend_alerts, spend_alerts.c.id == fired.alert_id)
            .join(organizations, organizations.c.id == spend_alerts.c.organization_id)
            .outerjoin(projects, projects.c.id == spend_alerts.c.project_id)
            .where(_is_due(now_ms))
            .order_by(turn, fired.next_attempt_ms)
            .limit(most)
        )
        async with self._storage.read() as connection:
            rows = (await connection.execute(due)).mappings().all()
        taken = []
        for row in rows:
            if row["deleted_ms"] is not None:
                await self.settle(row["id"], now_ms, "the alert was deleted", None)
                continue
            statement = update(alert_notifications).where(
                fired.id == row["id"], fired.next_attempt_ms == row["next_attempt_ms"]
            )
            values = {"attempts": row["attempts"] + 1, "next_attempt_ms": again_ms}
            async with self._storage.write() as connection:
                changed = await connection.execute(statement.values(**values))
            if changed.rowcount:
                taken.append(_notification(row, row["attempts"] + 1))
        return taken

    async def settle(
        self, notification_id: str, now_ms: int, error: str | None, again_ms: int | None
    ) -> None:
        """An attempt is over: delivered without an ``error``, otherwise due again, or given up for good."""
        values: Mapping[str, Any] = {"delivered_ms": now_ms, "next_attempt_ms": None, "error": None}
        if error is not None:
            values = {"next_attempt_ms": again_ms, "error": error[:_MAX_ERROR]}
        condition = alert_notifications.c.id == notification_id
        async with self._storage.write() as connection:
            await connection.execute(update(alert_notifications).where(condition).values(**values))


def _is_due(now_ms: int) -> ColumnElement[bool]:
    next_ms = alert_notifications.c.next_attempt_ms
    return or_(next_ms <= now_ms, next_ms > now_ms + LONGEST_WAIT_MS)


def _notification(row: RowMapping, attempts: int) -> Notification:
    alert = SpendAlert(
        row["alert_id"],
        row["organization_id"],
        row["project_id"],
        row["threshold_cents"],
        json.loads(row["channel"]),
    )
    return Notification(
        id=row["id"],
        alert=alert,
        subject_name=row["subject_name"],
        month=row["month"],
        threshold_cents=row["threshold_cents"],
        spent_cents=row["spent_cents"],
        created_ms=row["created_ms"],
        attempts=attempts,
    )
