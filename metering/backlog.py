"""What a writer has yet to make durable: merged by entry, and kept over failures of the storage."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from metering.entries import Write
from metering.tickets import Ticket

_log = logging.getLogger("torpor.ledger")


@dataclass(slots=True)
class Backlog:
    """The newest state of each entry that is not durable, by its id, in order of arrival.

    Settlements and checkpoints survive a failed commit and go with the next one: their tokens have been
    generated. An opening does not: its request is refused.
    """

    writes: dict[str, Write] = field(default_factory=dict)

    def add(self, new: Iterable[Write]) -> None:
        """Merges what came from the queue. The first settlement of an entry stands."""
        for write in new:
            earlier = self.writes.get(write.attempt.id)
            if earlier is None:
                self.writes[write.attempt.id] = write
            elif earlier.settlement is not None:
                earlier.tickets += write.tickets
            else:
                write.opening = write.opening or earlier.opening
                write.tickets = earlier.tickets + write.tickets
                self.writes[write.attempt.id] = write

    def pending(self) -> list[Write]:
        """What is to be written."""
        return list(self.writes.values())

    def done(self, writes: Iterable[Write]) -> list[Ticket]:
        """These are durable, or never will be. Returns who waited for them."""
        tickets: list[Ticket] = []
        for write in writes:
            del self.writes[write.attempt.id]
            tickets += write.tickets
        return tickets

    def failed(self) -> list[Ticket]:
        """Nothing of it is durable, as far as anybody knows. Returns who waited."""
        tickets: list[Ticket] = []
        for key, write in list(self.writes.items()):
            tickets += write.tickets
            write.tickets = []
            if write.settlement is None and write.opening:
                del self.writes[key]
        return tickets

    def report_lost(self) -> None:
        """Logs what no storage could be found for, so that accounting can enter it by hand."""
        for write in self.writes.values():
            usage = write.usage
            fields = {
                "attempt": write.attempt.id,
                "organization": write.attempt.organization_id,
                "project": write.attempt.project_id,
                "model": write.attempt.model,
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
            }
            _log.error("a ledger entry was not stored before the end", extra={"fields": fields})
