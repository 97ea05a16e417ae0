"""The tables of spend alerts, and of the notifications that they have caused."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from tenants.tables import metadata

spend_alerts = Table(
    "spend_alerts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("organization_id", String(64), ForeignKey("organizations.id"), nullable=False),
    Column("project_id", String(64), ForeignKey("projects.id")),
    Column("subject_id", String(64), nullable=False),
    Column("threshold_cents", BigInteger, nullable=False),
    Column("channel", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
    Index(None, "subject_id", "created_ms", "id"),
)
"""``subject_id`` is the project's id or the organization's own; ``channel`` is a JSON object."""

alert_notifications = Table(
    "alert_notifications",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("alert_id", String(64), ForeignKey("spend_alerts.id"), nullable=False),
    Column("month", BigInteger, nullable=False),
    Column("threshold_cents", BigInteger, nullable=False),
    Column("spent_cents", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_ms", BigInteger),
    Column("delivered_ms", BigInteger),
    Column("error", String(256)),
    UniqueConstraint("alert_id", "month", "threshold_cents", name="uq_alert_notifications_once"),
    Index(None, "next_attempt_ms"),
)
"""One row for each alert, month (its first second) and threshold: what has fired, and what is to be told.

Without ``next_attempt_ms`` it is over: delivered, or given up.
"""
