"""What a notification says, to a program and to a person."""

import json
from datetime import UTC, datetime

from tenants.alerts.outbox import Notification

EVENT = "spend_alert.triggered"


class DeliveryFailed(Exception):
    """An attempt has failed. The message holds no secret; ``final`` where another one would be in vain."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


def event_of(notification: Notification) -> bytes:
    """The event as JSON, in the form that the Standard Webhooks specification recommends.

    The same bytes at each attempt. Amounts are in cents, that of the spend rounded down.
    """
    alert = notification.alert
    event = {
        "type": EVENT,
        "timestamp": _time(notification.created_ms / 1000).isoformat(timespec="seconds"),
        "data": {
            "alert_id": alert.id,
            "organization_id": alert.organization_id,
            "project_id": alert.project_id,
            "threshold_amount": notification.threshold_cents,
            "spent_amount": notification.spent_cents,
            "currency": "USD",
            "interval": "month",
            "month": month_of(notification),
        },
    }
    return json.dumps(event, separators=(",", ":")).encode()


def subject_of(notification: Notification) -> str:
    """One line, with the prefix that the alert gives."""
    prefix = notification.alert.channel.get("subject_prefix") or "Torpor"
    what = f"the {_whose(notification)} has spent {_dollars(notification.threshold_cents)} this month"
    return f"{prefix}: {what}"


def text_of(notification: Notification) -> str:
    """The text of an email."""
    alert = notification.alert
    subject_id = alert.subject_id
    return (
        f"The {_whose(notification)} ({subject_id}) has reached the threshold of a spend alert.\n\n"
        f"Month:      {month_of(notification)} (UTC)\n"
        f"Threshold:  {_dollars(notification.threshold_cents)}\n"
        f"Spent:      {_dollars(notification.spent_cents)}\n"
        f"Alert:      {alert.id}\n\n"
        "The alert does not stop any request: a spend limit does.\n"
    )


def month_of(notification: Notification) -> str:
    """``YYYY-MM``."""
    return _time(notification.month).strftime("%Y-%m")


def _whose(notification: Notification) -> str:
    kind = "organization" if notification.alert.project_id is None else "project"
    return f"{kind} {notification.subject_name}"


def _dollars(cents: int) -> str:
    return f"${cents // 100:,}.{cents % 100:02d}"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
