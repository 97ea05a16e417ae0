"""The state of a ledger entry on its way to the database, and the one statement that every write is.

Every write is an upsert of the whole row. So writes of one entry can be merged (only the newest state
counts), repeated (the same row again changes nothing) and healed (a settlement makes the row that its
failed opening did not). Two rules are in the statement itself: a settled row never changes, and the tokens
of an open row never shrink.
"""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, and_, or_
from sqlalchemy.dialects import postgresql, sqlite

from metering.tables import ledger_entries
from metering.tickets import Ticket
from metering.types import Attempt, Outcome, Timings, Usage

COLUMNS = tuple(column.name for column in ledger_entries.columns)
_CHANGING = COLUMNS[COLUMNS.index("input_tokens") :]
_NO_TIMINGS = Timings()

Upsert = sqlite.Insert | postgresql.Insert


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an attempt ended, ``at_ms`` milliseconds since the epoch."""

    outcome: Outcome
    at_ms: int
    timings: Timings | None
    status: int | None


@dataclass(slots=True)
class Write:
    """A new state of an entry, and who waits for it to be durable. ``opening``: it is the first one."""

    attempt: Attempt
    usage: Usage
    settlement: Settlement | None = None
    opening: bool = False
    tickets: list[Ticket] = field(default_factory=list)

    def row(self) -> tuple[Any, ...]:
        """The values of `COLUMNS`."""
        attempt, usage, settlement = self.attempt, self.usage, self.settlement
        timings = (settlement.timings if settlement is not None else None) or _NO_TIMINGS
        return (
            attempt.id,
            attempt.request_id,
            attempt.organization_id,
            attempt.project_id,
            attempt.api_key_id,
            attempt.user_id,
            attempt.model,
            attempt.adapter,
            attempt.operation.value,
            attempt.batch,
            attempt.service_tier,
            int(attempt.started_at * 1000),
            usage.input_tokens,
            usage.cached_tokens,
            usage.output_tokens,
            usage.estimated,
            settlement.outcome.value if settlement is not None else None,
            settlement.at_ms if settlement is not None else None,
            settlement.status if settlement is not None else None,
            timings.tier,
            timings.queue_ms,
            timings.wake_ms,
            timings.ttft_ms,
            timings.total_ms,
        )


def upsert(dialect: str) -> Upsert:
    """The statement for one row, for the databases that there are: ``sqlite`` and ``postgresql``."""
    if dialect == "postgresql":
        for_postgresql = postgresql.insert(ledger_entries)
        values = {name: for_postgresql.excluded[name] for name in _CHANGING}
        goes_on = _goes_on(for_postgresql.excluded)
        return for_postgresql.on_conflict_do_update(index_elements=["id"], set_=values, where=goes_on)
    for_sqlite = sqlite.insert(ledger_entries)
    values = {name: for_sqlite.excluded[name] for name in _CHANGING}
    goes_on = _goes_on(for_sqlite.excluded)
    return for_sqlite.on_conflict_do_update(index_elements=["id"], set_=values, where=goes_on)


def _goes_on(new: Any) -> ColumnElement[bool]:
    old = ledger_entries.c
    grows = and_(new.input_tokens >= old.input_tokens, new.output_tokens >= old.output_tokens)
    return and_(old.outcome.is_(None), or_(new.outcome.is_not(None), grows))
