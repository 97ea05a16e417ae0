"""Spend alerts, and the notifications that they cause."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "spend_alerts",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64)),
        sa.Column("subject_id", sa.String(64), nullable=False),
        sa.Column("threshold_cents", sa.BigInteger, nullable=False),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("deleted_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_spend_alerts"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_spend_alerts_organization_id_organizations"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_spend_alerts_project_id_projects"),
    )
    op.create_index(
        "ix_spend_alerts_subject_id_created_ms_id", "spend_alerts", ["subject_id", "created_ms", "id"]
    )
    op.create_table(
        "alert_notifications",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("alert_id", sa.String(64), nullable=False),
        sa.Column("month", sa.BigInteger, nullable=False),
        sa.Column("threshold_cents", sa.BigInteger, nullable=False),
        sa.Column("spent_cents", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_ms", sa.BigInteger),
        sa.Column("delivered_ms", sa.BigInteger),
        sa.Column("error", sa.String(256)),
        sa.PrimaryKeyConstraint("id", name="pk_alert_notifications"),
        sa.UniqueConstraint("alert_id", "month", "threshold_cents", name="uq_alert_notifications_once"),
        sa.ForeignKeyConstraint(
            ["alert_id"], ["spend_alerts.id"], name="fk_alert_notifications_alert_id_spend_alerts"
        ),
    )
    op.create_index("ix_alert_notifications_next_attempt_ms", "alert_notifications", ["next_attempt_ms"])


def downgrade() -> None:
    """Drop them."""
    for table in ("alert_notifications", "spend_alerts"):
        op.drop_table(table)
