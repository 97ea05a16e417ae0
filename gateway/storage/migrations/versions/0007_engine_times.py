"""The time of engines, by hour and model."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "engine_times",
        sa.Column("hour", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        *[
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("busy_ms", "idle_ms", "waking_ms", "wakes")
        ],
        sa.PrimaryKeyConstraint("hour", "model", "owner", name="pk_engine_times"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("engine_times")
