"""The state of a ledger entry on its way to the database, and the statements that write it.

Every write is an upsert of the whole row. So writes of one entry can be merged (only the newest state
counts), repeated (the same row again changes nothing) and healed (a settlement makes the row that its
failed opening did not). Two rules are in the statement itself: a settled row never changes, and the tokens
of an open row never shrink. A settling statement returns the ids that it settled, and no others: these are
what the rollups are told, in the same transaction.
"""

from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Insert, and_, or_

from metering.ledger.durability import Durability
from metering.ledger.journal import Row
from metering.prices import NO_COSTS, Costs
from metering.tables import insert_into, ledger_entries
from metering.types import Attempt, Outcome, Timings, Usage

COLUMNS = tuple(column.name for column in ledger_entries.columns)
OUTCOME = COLUMNS.index("outcome")
_CHANGING = COLUMNS[COLUMNS.index("input_tokens") :]
_NO_TIMINGS = Timings()
_TOKENS = tuple(COLUMNS.index(name) for name in ("input_tokens", "cached_tokens", "output_tokens"))
_COSTS = tuple(
    COLUMNS.index(name) for name in ("input_cost", "cached_cost", "output_cost", "engine_cost", "engine_ms")
)


class Settlement(msgspec.Struct, frozen=True):
    """How an attempt ended, ``at_ms`` milliseconds since the epoch, and what it costs."""

    outcome: Outcome
    at_ms: int
    timings: Timings | None
    status: int | None
    costs: Costs = NO_COSTS


@dataclass(slots=True)
class Write:
    """A new state of an entry, and who waits for it to be durable."""

    attempt: Attempt
    usage: Usage
    settlement: Settlement | None = None
    tickets: list[Durability] = field(default_factory=list)

    def row(self, owner: str | None = None) -> Row:
        """The values of `COLUMNS`."""
        attempt, usage, settlement = self.attempt, self.usage, self.settlement
        timings = (settlement.timings if settlement is not None else None) or _NO_TIMINGS
        costs = settlement.costs if settlement is not None else NO_COSTS
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
            owner,
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
            costs.engine_ms,
            costs.input,
            costs.cached,
            costs.output,
            costs.engine,
        )


def is_storable(row: Row) -> bool:
    """Whether all counts of a row fit into 64 bits."""
    together = 0
    for index in (*_TOKENS, *_COSTS):
        if row[index] < 0:
            return False
        together |= row[index]
    return not together >> 63


def interrupted(row: Row, at_ms: int, costs: Costs) -> Row:
    """The settled row of an entry that was open when its gateway ended."""
    values = dict(zip(COLUMNS, row, strict=True))
    values |= {"outcome": Outcome.INTERRUPTED.value, "settled_ms": at_ms}
    values |= {"input_cost": costs.input, "cached_cost": costs.cached, "output_cost": costs.output}
    return tuple(values.values())


def attempt_of(row: Row) -> Attempt:
    """The attempt that a row is of."""
    values = dict(zip(COLUMNS, row, strict=True))
    names = Attempt.__struct_fields__
    fields = {name: value for name, value in values.items() if name in names}
    return Attempt(**fields, started_at=values["started_ms"] / 1000)


def usage_of(row: Row) -> Usage:
    """The tokens of a row."""
    return Usage(*(row[index] for index in _TOKENS))


def upsert(dialect: str) -> Insert:
    """The statement for one row, for the databases that there are: ``sqlite`` and ``postgresql``."""
    statement = insert_into(ledger_entries, dialect)
    values = {name: statement.excluded[name] for name in _CHANGING}
    goes_on = _goes_on(statement.excluded)
    upserting: Insert = statement.on_conflict_do_update(index_elements=["id"], set_=values, where=goes_on)
    return upserting


def _goes_on(new: Any) -> ColumnElement[bool]:
    old = ledger_entries.c
    grows = and_(new.input_tokens >= old.input_tokens, new.output_tokens >= old.output_tokens)
    return and_(old.outcome.is_(None), or_(new.outcome.is_not(None), grows))
