"""The tables of limits and budgets. A null size means no limit, or the configuration's default."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, UniqueConstraint

from tenants.tables import metadata

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
