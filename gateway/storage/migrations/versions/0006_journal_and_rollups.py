"""Owners and costs of ledger entries, and the rollups of usage by hour and by day."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COSTS = ("engine_ms", "input_cost", "cached_cost", "output_cost", "engine_cost")
_KEYS = {
    "operation": 16,
    "project_id": 64,
    "model": 256,
    "adapter": 256,
    "batch": None,
    "service_tier": 64,
}
_OF_HOURS = {**_KEYS, "api_key_id": 64, "user_id": 256}
_HOUR_MS = 3_600_000


def upgrade() -> None:
    """Add the columns, create the rollups, and fill them from the entries that are settled."""
    op.add_column("ledger_entries", sa.Column("owner", sa.String(64)))
    for name in _COSTS:
        op.add_column(
            "ledger_entries", sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))
        )
    _create("usage_hours", "hour", _OF_HOURS)
    _create("usage_days", "day", _KEYS)
    _fill("usage_hours", "hour", _HOUR_MS, _OF_HOURS)
    _fill("usage_days", "day", 24 * _HOUR_MS, _KEYS)


def downgrade() -> None:
    """Drop them."""
    op.drop_table("usage_days")
    op.drop_table("usage_hours")
    with op.batch_alter_table("ledger_entries") as table:
        for name in (*_COSTS, "owner"):
            table.drop_column(name)


def _create(name: str, bucket: str, keys: dict[str, int | None]) -> None:
    measures = ("requests", "input_tokens", "cached_tokens", "output_tokens", *_COSTS)
    op.create_table(
        name,
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column(bucket, sa.BigInteger, nullable=False),
        *[
            sa.Column(key, sa.Boolean() if size is None else sa.String(size), nullable=False)
            for key, size in keys.items()
        ],
        *[sa.Column(measure, sa.BigInteger, nullable=False) for measure in measures],
        sa.PrimaryKeyConstraint("organization_id", bucket, *keys, name=f"pk_{name}"),
        sqlite_with_rowid=False,
    )


def _fill(name: str, bucket: str, width_ms: int, keys: dict[str, int | None]) -> None:
    nullable = ("adapter", "service_tier", "user_id")
    values = ", ".join(f"coalesce({key}, '')" if key in nullable else key for key in keys)
    tokens = ("input_tokens", "cached_tokens", "output_tokens", *_COSTS)
    groups = f"organization_id, started_ms / {width_ms}, {values}"
    sums = ", ".join(f"sum({token})" for token in tokens)
    op.execute(
        f"INSERT INTO {name} (organization_id, {bucket}, {', '.join(keys)}, requests, {', '.join(tokens)}) "  # noqa: S608
        f"SELECT {groups}, count(*), {sums} FROM ledger_entries "
        "WHERE outcome IS NOT NULL AND (outcome = 'completed' OR input_tokens > 0 OR output_tokens > 0) "
        f"GROUP BY {groups}"
    )
