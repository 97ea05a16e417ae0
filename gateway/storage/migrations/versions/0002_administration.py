"""Service accounts, users, permissions of models, the audit log, and organizations that can be archived."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and an account for each key of a project, under the id that was shown for it."""
    op.add_column("organizations", sa.Column("archived_ms", sa.BigInteger))
    _create_service_accounts()
    _create_members()
    _create_audit_log()


def downgrade() -> None:
    """Drop them."""
    for table in ("audit_logs", "project_users", "users", "model_permissions"):
        op.drop_table(table)
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_index("ix_api_keys_service_account_id")
        keys.drop_constraint("fk_api_keys_service_account_id_service_accounts", type_="foreignkey")
        keys.drop_column("service_account_id")
    op.drop_table("service_accounts")
    op.drop_column("organizations", "archived_ms")


def _create_service_accounts() -> None:
    op.create_table(
        "service_accounts",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("deleted_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_service_accounts"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="fk_service_accounts_project_id_projects"
        ),
    )
    op.create_index(
        "ix_service_accounts_project_id_created_ms_id", "service_accounts", ["project_id", "created_ms", "id"]
    )
    op.execute(
        "INSERT INTO service_accounts (id, project_id, name, role, created_ms, deleted_ms) "
        "SELECT 'svc_' || substr(id, 5), project_id, name, 'member', created_ms, revoked_ms "
        "FROM api_keys WHERE kind = 'project'"
    )
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("service_account_id", sa.String(64)))
        keys.create_foreign_key(
            "fk_api_keys_service_account_id_service_accounts",
            "service_accounts",
            ["service_account_id"],
            ["id"],
        )
        keys.create_index("ix_api_keys_service_account_id", ["service_account_id"])
    op.execute("UPDATE api_keys SET service_account_id = 'svc_' || substr(id, 5) WHERE kind = 'project'")


def _create_members() -> None:
    op.create_table(
        "model_permissions",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("model_ids", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("project_id", name="pk_model_permissions"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name="fk_model_permissions_project_id_projects"
        ),
    )
    op.create_table(
        "users",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("id", sa.String(256), nullable=False),
        sa.Column("email", sa.String(256)),
        sa.Column("name", sa.String(256)),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("removed_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("organization_id", "id", name="pk_users"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_users_organization_id_organizations"
        ),
    )
    op.create_index(
        "ix_users_organization_id_created_ms_id", "users", ["organization_id", "created_ms", "id"]
    )
    op.create_table(
        "project_users",
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("id", sa.String(256), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project_id", "id", name="pk_project_users"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_project_users_project_id_projects"),
        sa.ForeignKeyConstraint(
            ["organization_id", "id"],
            ["users.organization_id", "users.id"],
            name="fk_project_users_organization_id_users",
        ),
    )


def _create_audit_log() -> None:
    op.create_table(
        "audit_logs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64)),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("actor_key_id", sa.String(64)),
        sa.Column("actor_kind", sa.String(16)),
        sa.Column("address", sa.String(64)),
        sa.Column("user_agent", sa.String(256)),
        sa.Column("project_id", sa.String(64)),
        sa.Column("resource_id", sa.String(256), nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_logs"),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_audit_logs_organization_id_organizations"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_audit_logs_project_id_projects"),
    )
    op.create_index(
        "ix_audit_logs_organization_id_created_ms_id", "audit_logs", ["organization_id", "created_ms", "id"]
    )
