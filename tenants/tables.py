"""The tables of tenants/. Times are integer milliseconds since the epoch, so that creation has an order."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

organizations = Table(
    "organizations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("slug", String(64), nullable=False, unique=True),
    Column("name", String(256), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("archived_ms", BigInteger),
    Index(None, "created_ms", "id"),
)

projects = Table(
    "projects",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("organization_id", String(64), ForeignKey("organizations.id"), nullable=False),
    Column("name", String(256), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("archived_ms", BigInteger),
    Index(None, "organization_id", "created_ms", "id"),
)

project_weights = Table(
    "project_weights",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("weight", Double, nullable=False),
)
"""Shares in the models' queues; a project without a row has the weight 1."""

service_accounts = Table(
    "service_accounts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("name", String(256), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("deleted_ms", BigInteger),
    Index(None, "project_id", "created_ms", "id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("organization_id", String(64), ForeignKey("organizations.id")),
    Column("project_id", String(64), ForeignKey("projects.id")),
    Column("name", String(256), nullable=False),
    Column("prefix", String(64), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("owner_user_id", String(256)),
    Column("service_account_id", String(64), ForeignKey("service_accounts.id")),
    Column("scopes", String(1024), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("last_used_ms", BigInteger),
    Index(None, "organization_id", "created_ms", "id"),
    Index(None, "service_account_id"),
)
"""``digest`` is HMAC-SHA256 of the secret under the pepper; ``scopes`` are joined by spaces."""

model_permissions = Table(
    "model_permissions",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("mode", String(16), nullable=False),
    Column("model_ids", Text, nullable=False),
)
"""``model_ids`` is a JSON array. A project without a row may use every model."""

users = Table(
    "users",
    metadata,
    Column("organization_id", String(64), ForeignKey("organizations.id"), primary_key=True),
    Column("id", String(256), primary_key=True),
    Column("email", String(256)),
    Column("name", String(256)),
    Column("role", String(16), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("removed_ms", BigInteger),
    Index(None, "organization_id", "created_ms", "id"),
)
"""``id`` is what the organization's tokens call the user. Who was removed stays, and is let in no more."""

project_users = Table(
    "project_users",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("id", String(256), primary_key=True),
    Column("organization_id", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    ForeignKeyConstraint(["organization_id", "id"], ["users.organization_id", "users.id"]),
)
"""``id`` is the user's."""

audit_logs = Table(
    "audit_logs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("organization_id", String(64), ForeignKey("organizations.id")),
    Column("type", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("actor_key_id", String(64)),
    Column("actor_kind", String(16)),
    Column("address", String(64)),
    Column("user_agent", String(256)),
    Column("project_id", String(64), ForeignKey("projects.id")),
    Column("resource_id", String(256), nullable=False),
    Column("details", Text, nullable=False),
    Index(None, "organization_id", "created_ms", "id"),
)
"""Ids ascend with time. Without an organization it was an act on the host itself; ``details`` is JSON."""
