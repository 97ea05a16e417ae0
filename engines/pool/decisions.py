"""What the scheduler can decide about a model's engines. `engines.pool.actor` carries the decisions out.

The functions that return them (`engines.pool.scheduling`, `scaling`, `idle_policy`) read the state of the
replicas and change nothing.
"""

import time
from dataclasses import dataclass, field

from coldstart.tiers import SleepTier
from engines.adapter import Adapter


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """A request for an engine, until it is granted: for a lease, or only for the engine to be awake.

    ``prefix``: how its conversation begins. ``tier``: what the request met when it arrived. ``arrived_at``:
    seconds of CLOCK_MONOTONIC.
    """

    wants_lease: bool
    prefix: int | None = None
    adapter: Adapter | None = None
    tier: SleepTier = SleepTier.COLD
    arrived_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Grant:
    """The waiter gets the replica with this number. ``prefix``: to be remembered as served there."""

    waiter: Waiter
    replica: int
    prefix: int | None = None


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """The replica is to load the adapter, for a waiter that is granted later."""

    replica: int
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Rest:
    """The replica, which is idle, is to go to sleep in the tier."""

    replica: int
    tier: SleepTier


@dataclass(frozen=True, slots=True)
class Resume:
    """The replica, which is paused, is to run again."""

    replica: int


@dataclass(frozen=True, slots=True)
class AddReplica:
    """Another engine is to be woken, from the snapshot or from the weights."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The replica, which still waits for memory, is not needed."""

    replica: int
