"""The rollups: sums of settled entries by hour and by day, changed in the transaction that settles them."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Insert, Table

from metering.ledger.entries import COLUMNS
from metering.ledger.journal import Row
from metering.tables import MEASURES, insert_into, usage_days, usage_hours
from metering.types import Outcome

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
DAY_KEYS = tuple(column.name for column in usage_days.primary_key.columns)
HOUR_KEYS = tuple(column.name for column in usage_hours.primary_key.columns)
ROLLUPS = ((usage_hours, HOUR_KEYS), (usage_days, DAY_KEYS))
NULLABLE = frozenset({"adapter", "service_tier", "user_id"})
"""Columns of an entry whose null is an empty string in a rollup."""

Increments = dict[tuple[Any, ...], list[int]]

(
    _ORGANIZATION,
    _PROJECT,
    _KEY,
    _USER,
    _MODEL,
    _ADAPTER,
    _OPERATION,
    _BATCH,
    _SERVICE_TIER,
    _STARTED,
    _INPUT,
    _OUTPUT,
    _OUTCOME,
) = (
    COLUMNS.index(name)
    for name in (
        "organization_id",
        "project_id",
        "api_key_id",
        "user_id",
        "model",
        "adapter",
        "operation",
        "batch",
        "service_tier",
        "started_ms",
        "input_tokens",
        "output_tokens",
        "outcome",
    )
)
_SUMMED = tuple(COLUMNS.index(name) for name in MEASURES[1:])


def counts(row: Row) -> bool:
    """Whether a settled row is in reports: it ``completed``, or has any tokens."""
    return bool(row[_OUTCOME] == Outcome.COMPLETED.value or row[_INPUT] > 0 or row[_OUTPUT] > 0)


def increments(rows: Iterable[Row]) -> tuple[Increments, Increments]:
    """What rows that have just been settled add to `usage_hours` and to `usage_days`, by primary key."""
    hours: Increments = {}
    days: Increments = {}
    for row in rows:
        if not counts(row):
            continue
        shared = (
            row[_OPERATION],
            row[_PROJECT],
            row[_MODEL],
            row[_ADAPTER] or "",
            row[_BATCH],
            row[_SERVICE_TIER] or "",
        )
        organization, started = row[_ORGANIZATION], row[_STARTED]
        hour = (organization, started // HOUR_MS, *shared, row[_KEY], row[_USER] or "")
        measures = (1, *[row[index] for index in _SUMMED])
        _add(hours, hour, measures)
        _add(days, (organization, started // DAY_MS, *shared), measures)
    return hours, days


def _add(sums: Increments, key: tuple[Any, ...], measures: tuple[int, ...]) -> None:
    sums_of_key = sums.get(key)
    if sums_of_key is None:
        sums[key] = list(measures)
        return
    for index, measure in enumerate(measures):
        sums_of_key[index] += measure


def values_of(sums: Increments) -> list[tuple[Any, ...]]:
    """Rows for `addition`, in the order of their keys: two processes that write the same rows in the same
    order do not block each other for good."""
    return [(*key, *measures) for key, measures in sorted(sums.items())]


def addition(table: Table, dialect: str) -> Insert:
    """The statement that adds one row to a rollup."""
    keys = [column.name for column in table.primary_key.columns]
    statement = insert_into(table, dialect)
    added = {name: table.c[name] + statement.excluded[name] for name in MEASURES}
    upsert: Insert = statement.on_conflict_do_update(index_elements=keys, set_=added)
    return upsert
