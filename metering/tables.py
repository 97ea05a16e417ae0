"""The ledger's tables: one row for each attempt, opened once and settled once, and the sums of settled rows.

Times are integer milliseconds since the epoch, durations are in milliseconds, counts are integers, costs are
in picodollars (10**-12 dollars). A row whose ``outcome`` is null is open: its tokens are the last
checkpoint's, and ``owner`` is the journal of the process that will settle it. Rows are never deleted, and
nothing of a settled row changes.

A rollup has one row for each bucket and combination of what reports group by, in which an empty string
stands for null. It is changed only in the transaction that settles the entries it counts.
"""

from importlib import import_module
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    text,
)


def insert_into(table: Table, dialect: str) -> Any:
    """``INSERT`` with ``ON CONFLICT``, of ``sqlite`` or ``postgresql``; only that dialect is imported."""
    return import_module(f"sqlalchemy.dialects.{dialect}").insert(table)


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
    Column("owner", String(64)),
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
    Column("engine_ms", BigInteger, nullable=False, server_default=text("0")),
    Column("input_cost", BigInteger, nullable=False, server_default=text("0")),
    Column("cached_cost", BigInteger, nullable=False, server_default=text("0")),
    Column("output_cost", BigInteger, nullable=False, server_default=text("0")),
    Column("engine_cost", BigInteger, nullable=False, server_default=text("0")),
)

Index("ix_ledger_entries_usage", ledger_entries.c.organization_id, ledger_entries.c.started_ms)

_open = ledger_entries.c.outcome.is_(None)
Index("ix_ledger_entries_open", ledger_entries.c.id, sqlite_where=_open, postgresql_where=_open)

MEASURES = (
    "requests",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "engine_ms",
    "input_cost",
    "cached_cost",
    "output_cost",
    "engine_cost",
)
"""What a rollup sums up."""


def _measures() -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False) for name in MEASURES]


usage_hours = Table(
    "usage_hours",
    metadata,
    Column("organization_id", String(64), nullable=False),
    Column("hour", BigInteger, nullable=False),
    Column("operation", String(16), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("model", String(256), nullable=False),
    Column("adapter", String(256), nullable=False),
    Column("batch", Boolean, nullable=False),
    Column("service_tier", String(64), nullable=False),
    Column("api_key_id", String(64), nullable=False),
    Column("user_id", String(256), nullable=False),
    *_measures(),
    PrimaryKeyConstraint(
        "organization_id",
        "hour",
        "operation",
        "project_id",
        "model",
        "adapter",
        "batch",
        "service_tier",
        "api_key_id",
        "user_id",
        name="pk_usage_hours",
    ),
    sqlite_with_rowid=False,
)
"""``hour``: hours since the epoch, of the start of the entries."""

usage_days = Table(
    "usage_days",
    metadata,
    Column("organization_id", String(64), nullable=False),
    Column("day", BigInteger, nullable=False),
    Column("operation", String(16), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("model", String(256), nullable=False),
    Column("adapter", String(256), nullable=False),
    Column("batch", Boolean, nullable=False),
    Column("service_tier", String(64), nullable=False),
    *_measures(),
    PrimaryKeyConstraint(
        "organization_id",
        "day",
        "operation",
        "project_id",
        "model",
        "adapter",
        "batch",
        "service_tier",
        name="pk_usage_days",
    ),
    sqlite_with_rowid=False,
)
"""``day``: days since the epoch. Without keys and users, which keeps it small."""

engine_times = Table(
    "engine_times",
    metadata,
    Column("hour", BigInteger, nullable=False),
    Column("model", String(256), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("busy_ms", BigInteger, nullable=False),
    Column("idle_ms", BigInteger, nullable=False),
    Column("waking_ms", BigInteger, nullable=False),
    Column("wakes", BigInteger, nullable=False),
    PrimaryKeyConstraint("hour", "model", "owner", name="pk_engine_times"),
    sqlite_with_rowid=False,
)
"""Milliseconds of all engines of a model in an hour since the epoch, as one gateway has seen them."""
