"""What is written is plain SQLAlchemy: the statements compile for PostgreSQL as for SQLite."""

import pytest
from sqlalchemy import Dialect
from sqlalchemy.dialects import postgresql, sqlite

from metering.ledger.entries import upsert
from metering.ledger.rollups import ROLLUPS, addition
from metering.reports.engine_times import _addition
from metering.reports.verify import _compare
from metering.tables import ledger_entries

_DIALECTS: list[Dialect] = [
    postgresql.dialect(),  # type: ignore[no-untyped-call]
    sqlite.dialect(),
]


@pytest.mark.parametrize("dialect", _DIALECTS, ids=lambda dialect: dialect.name)
def test_statements_compile(dialect: Dialect) -> None:
    settling = str(upsert(dialect.name).returning(ledger_entries.c.id).compile(dialect=dialect))
    assert "ON CONFLICT (id) DO UPDATE SET" in settling
    assert "WHERE ledger_entries.outcome IS NULL AND" in settling
    assert settling.endswith(
        "RETURNING ledger_entries.id" if dialect.name == "postgresql" else "RETURNING id"
    )
    for table, keys in ROLLUPS:
        added = str(addition(table, dialect.name).compile(dialect=dialect))
        assert f"ON CONFLICT ({', '.join(keys)}) DO UPDATE" in added
        assert f"requests = ({table.name}.requests + excluded.requests)" in added
        statement = _compare(table, keys, "org-1", 0, 7)
        compiled = str(statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True}))
        assert "UNION ALL" in compiled
    times = str(_addition(dialect.name).compile(dialect=dialect))
    assert "busy_ms = (engine_times.busy_ms + excluded.busy_ms)" in times
