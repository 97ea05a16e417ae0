"""The tables of tenants/. Times are integer milliseconds since the epoch, which gives creation an order."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
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


adapters = Table(
    "adapters",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(256), nullable=False, unique=True),
    Column("organization_id", String(64), ForeignKey("organizations.id"), nullable=False),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("user_id", String(256)),
    Column("base_model", String(64), nullable=False),
    Column("suffix", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("canary", LargeBinary),
    Column("created_by", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Index(None, "project_id", "created_ms", "id"),
    Index(None, "organization_id", "created_ms", "id"),
    Index(None, "digest"),
)
"""``user_id`` is the owner of one that is that user's alone; ``digest`` (hexadecimal) names its content."""

adapter_permissions = Table(
    "adapter_permissions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("adapter_id", String(64), ForeignKey("adapters.id"), nullable=False),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("adapter_id", "project_id", name="uq_adapter_permissions_grant"),
    Index(None, "project_id"),
)
"""Which other projects of its organization may use an adapter."""


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


rate_limits = Table(
    "rate_limits",
    metadata,
    Column("project_id", String(64), ForeignKey("projects.id"), primary_key=True),
    Column("model", String(256), primary_key=True),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("requests_per_day", Integer),
    Column("batch_input_tokens_per_day", Integer),
)

subject_limits = Table(
    "subject_limits",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("organization_id", String(64), ForeignKey("organizations.id"), nullable=False),
    Column("subject_type", String(16), nullable=False),
    Column("subject_id", String(256), nullable=False),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("requests_per_day", Integer),
    Column("tokens_per_day", Integer),
    Column("concurrent_requests", Integer),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("organization_id", "subject_type", "subject_id", name="uq_subject_limits_subject"),
    Index(None, "organization_id", "created_ms", "id"),
)

spend_limits = Table(
    "spend_limits",
    metadata,
    Column("subject_id", String(64), primary_key=True),
    Column("organization_id", String(64), ForeignKey("organizations.id"), nullable=False),
    Column("threshold_cents", BigInteger, nullable=False),
)
"""``subject_id`` is a project's id or the organization's own."""
