"""The ledger's table: one row for each attempt, opened once and settled once.

Times are integer milliseconds since the epoch, durations are in milliseconds, counts are integers. A row
whose ``outcome`` is null is open: its tokens are the last checkpoint's. Rows are never deleted, and nothing
of a settled row changes.
"""

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, String, Table

metadata = MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s"}
)

ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("request_id", String(256), nullable=False),
    Column("organization_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("api_key_id", String(64), nullable=False),
    Column("user_id", String(256)),
    Column("model", String(256), nullable=False),
    Column("adapter", String(256)),
    Column("operation", String(16), nullable=False),
    Column("batch", Boolean, nullable=False),
    Column("service_tier", String(64)),
    Column("started_ms", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("outcome", String(16)),
    Column("settled_ms", BigInteger),
    Column("status", Integer),
    Column("tier", String(16)),
    Column("queue_ms", Double),
    Column("wake_ms", Double),
    Column("ttft_ms", Double),
    Column("total_ms", Double),
)

Index("ix_ledger_entries_usage", ledger_entries.c.organization_id, ledger_entries.c.started_ms)

_open = ledger_entries.c.outcome.is_(None)
Index("ix_ledger_entries_open", ledger_entries.c.id, sqlite_where=_open, postgresql_where=_open)
