"""What the configuration says of the queue of a model."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.config.sections import LimitsConfig, ModelConfig

_SLOTS_A_RESERVED = 16
"""One slot in so many is kept for projects of which nothing is in service."""


class QueueDiscipline(StrEnum):
    """In which order the requests of a model are served."""

    FAIR = "fair"
    FIFO = "fifo"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """Of one model. ``slots`` and ``reserved`` are for each engine; None: no limit, and no queue.

    ``max_queued`` is for each project. ``dedicated`` names the projects that have engines of their own.
    """

    slots: int | None
    reserved: int
    max_queued: int
    timeout_s: float
    discipline: QueueDiscipline
    dedicated: frozenset[str]


def queue_of(model: "ModelConfig", limits: "LimitsConfig") -> QueueSettings:
    """How requests wait for the model. One that somebody else runs has no queue unless it is limited."""
    slots = model.max_concurrent or (None if model.url else model.max_running)
    reserved = (slots or 0) // _SLOTS_A_RESERVED if model.reserved_slots is None else model.reserved_slots
    return QueueSettings(
        slots=slots,
        reserved=reserved,
        max_queued=model.max_queued,
        timeout_s=model.queue_timeout_s or limits.queue_timeout_s,
        discipline=model.queue_discipline,
        dedicated=frozenset(model.dedicated_projects),
    )


def queue_fault(model: "ModelConfig") -> tuple[str, str] | None:
    """The key that is wrong, and why."""
    slots = model.max_concurrent or model.max_running
    if model.url is None and slots > model.max_running:
        return "max_concurrent", "must not be more than max_running"
    if not 0 <= (model.reserved_slots or 0) < slots:
        return "reserved_slots", f"must be between 0 and {slots - 1}, one less than max_concurrent"
    if model.url is not None and model.dedicated_projects:
        return "dedicated_projects", "is for models that Torpor runs"
    return None
