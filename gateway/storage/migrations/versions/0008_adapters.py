"""Adapters and their permissions; limits of a model are of adapters as well, whose names are longer."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and lengthen the column."""
    op.create_table(
        "adapters",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(256)),
        sa.Column("base_model", sa.String(64), nullable=False),
        sa.Column("suffix", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("canary", sa.LargeBinary),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_adapters"),
        sa.UniqueConstraint("name", name="uq_adapters_name"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_adapters_organization_id_organizations"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_adapters_project_id_projects"),
    )
    for owner in ("project_id", "organization_id"):
        op.create_index(f"ix_adapters_{owner}_created_ms_id", "adapters", [owner, "created_ms", "id"])
    op.create_index("ix_adapters_digest", "adapters", ["digest"])
    op.create_table(
        "adapter_permissions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("adapter_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_adapter_permissions"),
        sa.UniqueConstraint("adapter_id", "project_id", name="uq_adapter_permissions_grant"),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name="fk_adapter_permissions_adapter_id_adapters"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="fk_adapter_permissions_project_id_projects"
        ),
    )
    op.create_index("ix_adapter_permissions_project_id", "adapter_permissions", ["project_id"])
    with op.batch_alter_table("rate_limits") as batch:
        batch.alter_column(
            "model", existing_type=sa.String(64), type_=sa.String(256), existing_nullable=False
        )


def downgrade() -> None:
    """Drop the tables. Limits of adapters go with them, for which the column would be too short."""
    op.execute("DELETE FROM rate_limits WHERE model LIKE 'ft:%'")
    with op.batch_alter_table("rate_limits") as batch:
        batch.alter_column(
            "model", existing_type=sa.String(256), type_=sa.String(64), existing_nullable=False
        )
    op.drop_table("adapter_permissions")
    op.drop_table("adapters")
