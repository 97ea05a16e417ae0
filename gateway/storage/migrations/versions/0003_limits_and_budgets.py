"""Limits by project and model, by project, key and user, and monthly spend limits."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of limits and budgets."""
    op.create_table(
        "rate_limits",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("requests_per_day", sa.Integer),
        sa.Column("batch_input_tokens_per_day", sa.Integer),
        sa.PrimaryKeyConstraint("project_id", "model", name="pk_rate_limits"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_rate_limits_project_id_projects"),
    )
    op.create_table(
        "subject_limits",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("subject_type", sa.String(16), nullable=False),
        sa.Column("subject_id", sa.String(256), nullable=False),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("requests_per_day", sa.Integer),
        sa.Column("tokens_per_day", sa.Integer),
        sa.Column("concurrent_requests", sa.Integer),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_subject_limits"),
        sa.UniqueConstraint(
            "organization_id", "subject_type", "subject_id", name="uq_subject_limits_subject"
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_subject_limits_organization_id_organizations"
        ),
    )
    op.create_index(
        "ix_subject_limits_organization_id_created_ms_id",
        "subject_limits",
        ["organization_id", "created_ms", "id"],
    )
    op.create_table(
        "spend_limits",
        sa.Column("subject_id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("threshold_cents", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("subject_id", name="pk_spend_limits"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_spend_limits_organization_id_organizations"
        ),
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("spend_limits", "subject_limits", "rate_limits"):
        op.drop_table(table)
