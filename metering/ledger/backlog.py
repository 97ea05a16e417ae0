"""What the database has yet to be told: merged by entry, and kept over its failures."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from metering.ledger.entries import COLUMNS, OUTCOME
from metering.ledger.journal import Group, Row

_logger = logging.getLogger("torpor.ledger")

_LOGGED = ("id", "organization_id", "project_id", "model", "input_tokens", "output_tokens", "outcome")

LINGER_S = 0.1
"""How long rows wait for others: an entry that is opened and settled within it is written once."""
MAX_LINGERING = 4_096


@dataclass(slots=True)
class Backlog:
    """The newest state of each entry that the database does not have, in order of arrival."""

    rows: dict[str, Row] = field(default_factory=dict)
    first: int = 0
    number: int = 0
    since: float | None = None

    def add(self, group: Group) -> None:
        """Merge a group. The first settlement of an entry stands."""
        rows = self.rows
        for row in group.rows:
            earlier = rows.get(row[0])
            if earlier is None or earlier[OUTCOME] is None:
                rows[row[0]] = row
        self.number = group.number
        if self.since is None:
            self.since, self.first = time.monotonic(), group.number

    def due_in(self, hurry: int) -> float:
        """Seconds until it should be written; ``hurry`` is the number of a group that a caller waits for."""
        if self.since is None or len(self.rows) >= MAX_LINGERING or hurry >= self.first:
            return 0.0
        return max(0.0, self.since + LINGER_S - time.monotonic())

    def clear(self) -> int:
        """All of it is in the database. Returns the number of its last group."""
        self.rows, self.since = {}, None
        return self.number

    def drop(self, row: Row) -> None:
        """The row is in the database, or will never be."""
        self.rows.pop(row[0], None)


def report_lost(rows: Iterable[Row]) -> None:
    """Log entries that the database refuses; accounting can then enter them by hand."""
    for row in rows:
        values = dict(zip(COLUMNS, row, strict=True))
        fields = {name: values[name] for name in _LOGGED}
        _logger.error("the database refuses a ledger entry: %s", row[0], extra={"fields": fields})
