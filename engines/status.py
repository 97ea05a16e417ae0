"""What the host tells about its engines."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from coldstart.tiers import SleepTier
from engines.spec import EngineAddress


class EngineState(StrEnum):
    """What an engine is doing."""

    COLD = "cold"
    STARTING = "starting"
    READY = "ready"
    PAUSED = "paused"
    RESTORING = "restoring"
    SNAPSHOTTING = "snapshotting"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Wake:
    """One wake that succeeded: when (unix seconds), from which tier, and how long its phases took."""

    at: float
    source: SleepTier
    ms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """An engine as it is now.

    ``memory_bytes`` is the PSS of its processes, measured twice a minute. ``started_at`` is the unix time
    at which it became ready, None while it is not. ``failure`` holds the last lines of the engine's own
    output after a failure: for the operator alone.
    """

    id: str
    state: EngineState
    tier: SleepTier
    memory_bytes: int = 0
    in_flight: int = 0
    started_at: float | None = None
    failure: str | None = None
    wakes: tuple[Wake, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class EngineLease:
    """The right to send requests to an engine that stays awake meanwhile.

    ``tier``: the tier in which the request found the engine. ``wake_s``: how long this request waited for it.
    """

    model_id: str
    address: EngineAddress
    tier: SleepTier
    wake_s: float
