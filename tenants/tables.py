"""The tables of tenants/. Times are integer milliseconds since the epoch, so that creation has an order."""

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, LargeBinary, MetaData, String, Table

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
    Column("scopes", String(1024), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("last_used_ms", BigInteger),
    Index(None, "organization_id", "created_ms", "id"),
)
"""``digest`` is HMAC-SHA256 of the secret under the pepper; ``scopes`` are joined by spaces."""
