"""Organizations, projects, keys, and the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table of the first version."""
    _create_tenants()
    _create_ledger()


def downgrade() -> None:
    """Drop every table."""
    for table in ("ledger_entries", "api_keys", "projects", "organizations"):
        op.drop_table(table)


def _create_tenants() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("slug", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organizations"),
        sa.UniqueConstraint("slug", name="uq_organizations_slug"),
    )
    op.create_index("ix_organizations_created_ms_id", "organizations", ["created_ms", "id"])
    op.create_table(
        "projects",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("archived_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_projects_organization_id_organizations"
        ),
    )
    op.create_index(
        "ix_projects_organization_id_created_ms_id", "projects", ["organization_id", "created_ms", "id"]
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("organization_id", sa.String(64)),
        sa.Column("project_id", sa.String(64)),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("prefix", sa.String(64), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("owner_user_id", sa.String(256)),
        sa.Column("scopes", sa.String(1024), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("last_used_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_api_keys_organization_id_organizations"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_api_keys_project_id_projects"),
    )
    op.create_index(
        "ix_api_keys_organization_id_created_ms_id", "api_keys", ["organization_id", "created_ms", "id"]
    )


def _create_ledger() -> None:
    op.create_table(
        "ledger_entries",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(256), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("api_key_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(256)),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("adapter", sa.String(256)),
        sa.Column("operation", sa.String(16), nullable=False),
        sa.Column("batch", sa.Boolean, nullable=False),
        sa.Column("service_tier", sa.String(64)),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("settled_ms", sa.BigInteger),
        sa.Column("status", sa.Integer),
        sa.Column("tier", sa.String(16)),
        sa.Column("queue_ms", sa.Double),
        sa.Column("wake_ms", sa.Double),
        sa.Column("ttft_ms", sa.Double),
        sa.Column("total_ms", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_entries"),
    )
    op.create_index("ix_ledger_entries_usage", "ledger_entries", ["organization_id", "started_ms"])
    still_open = sa.text("outcome IS NULL")
    op.create_index(
        "ix_ledger_entries_open",
        "ledger_entries",
        ["id"],
        sqlite_where=still_open,
        postgresql_where=still_open,
    )
