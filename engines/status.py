"""What the host tells about its engines."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from coldstart.tiers import SleepTier
from engines.adapter import Adapter
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
    """One wake that succeeded: when (unix seconds), from which tier, and how long its phases took,
    milliseconds.

    The phases of a canary are added when it has answered, after the engine became ready.
    """

    at: float
    source: SleepTier
    ms: Mapping[str, float]

    def verified(self, ms: Mapping[str, float]) -> "Wake":
        """The same wake, with the phases of its canary."""
        return Wake(self.at, self.source, {**self.ms, **ms})


class WakeObserver(Protocol):
    """What is told of every wake of an engine."""

    def on_wake(self, model_id: str, wake: Wake) -> None:
        """Take note of an engine that has become ready."""

    def on_canary(self, model_id: str, tier: SleepTier, ms: Mapping[str, float]) -> None:
        """Take note of the phases of a canary that has passed after a wake from the tier, milliseconds."""


@dataclass(frozen=True, slots=True)
class ResidentAdapter:
    """An adapter that an engine holds: how many requests use it, and whether its canary has passed."""

    digest: str
    in_flight: int
    verified: bool


@dataclass(frozen=True, slots=True)
class AdapterCounts:
    """Since the host was opened: loads into engines, canaries that differed, engines given up for that."""

    loads: int = 0
    misfits: int = 0
    engines_given_up: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """An engine of a model as it is now; ``pool`` names the only users of it, if it is not shared."""

    number: int
    state: EngineState
    memory_bytes: int
    in_flight: int
    started_at: float | None
    pool: str | None = None
    adapters: tuple[ResidentAdapter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """A model's engines as they are now: the state and the tier of the most awake of them, and their sums.

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
    replicas: tuple[ReplicaStatus, ...] = ()
    adapters: AdapterCounts = AdapterCounts()


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes: what all engines may use, what is reserved for them, and what the spare sandboxes use beside."""

    limit: int
    reserved: int
    spare_sandboxes: int


@dataclass(frozen=True, slots=True, eq=False)
class EngineLease:
    """The right to send requests to an engine, which stays awake until the lease ends.

    ``tier``: the tier in which the request found the engine. ``wake_s``: how long this request waited for it.
    ``unverified``: the engine was restored and its canary has not answered yet. It holds its answers back
    until then, and breaks the connection when it is not fit: the request may be sent to another engine.
    """

    model_id: str
    address: EngineAddress
    tier: SleepTier
    wake_s: float
    unverified: bool = False
    replica: int = 0
    adapter: Adapter | None = None
    internal_name: str | None = None
    """By which the engine knows the adapter as it was loaded this time."""

    @property
    def served_model_name(self) -> str:
        """What the engine is to be asked for, as the request's ``model``. Its answers say the public name."""
        if self.adapter is None or self.internal_name is None:
            return self.model_id
        return f"{self.internal_name}/{self.adapter.name}"
