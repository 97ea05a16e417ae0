"""The tables of adapters: who owns which content, and with whom it is shared."""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
)

from tenants.tables import metadata

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
