"""Weights of projects in the models' queues."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "project_weights",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("project_id", name="pk_project_weights"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="fk_project_weights_project_id_projects"
        ),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("project_weights")
