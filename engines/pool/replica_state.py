"""The observable state of a replica: what decisions about it are made on."""

import time

from coldstart.tiers import SleepTier
from engines.pool.adapter_slots import AdapterSlots
from engines.pool.memory_claim import MemoryClaim
from engines.spec import EngineAddress
from engines.status import EngineLease, EngineState, ReplicaStatus


class ReplicaState:
    """The state of one engine, its leases, its adapters, its memory. Only its `Replica` changes it.

    It has more attributes than other classes because it is a record: decisions read all of them.
    """

    def __init__(self, number: int, claim: MemoryClaim, slots: AdapterSlots) -> None:
        self.number = number
        self.claim = claim
        self.slots = slots
        self.state = EngineState.COLD
        self.leases: set[EngineLease] = set()
        self.address: EngineAddress | None = None  # of the engine that runs
        self.source = SleepTier.COLD
        self.snapshot_id: str | None = None  # the one that it was restored from
        self.idle_since = time.monotonic()
        self.awake_since = 0.0  # seconds of CLOCK_MONOTONIC
        self.ready_at: float | None = None  # unix seconds
        self.memory_bytes = 0
        self.suspected = False  # a request saw it fail, and its health is being checked
        self.unverified = False  # its canary has not answered yet
        self.canary_failed = False  # it broke because its canary differed
        self.broke_unverified = False  # it broke before its canary had answered
        self.served = False  # it has had a lease: what a request left in its memory stays there
        self.retiring = False  # it is no longer trusted, and ends with its last request

    @property
    def grantable(self) -> bool:
        """Whether requests may be sent to it."""
        return self.state is EngineState.READY and not self.suspected

    @property
    def waking(self) -> bool:
        """Whether it becomes ready without another request for it."""
        return self.state in (EngineState.STARTING, EngineState.RESTORING)

    @property
    def idle(self) -> bool:
        """Whether no request and no change of an adapter is in progress, so it may sleep."""
        return not self.busy and self.state in (EngineState.READY, EngineState.PAUSED)

    @property
    def busy(self) -> bool:
        """Whether a request or a change of an adapter is in progress."""
        return bool(self.leases) or self.slots.changing

    @property
    def waits_for_memory(self) -> bool:
        """Whether its wake has not begun because memory is short."""
        return self.waking and self.claim.reservation is None

    @property
    def uptime_s(self) -> float:
        """Seconds since its last wake."""
        return time.monotonic() - self.awake_since

    def serves(self, lease: EngineLease) -> bool:
        """Whether the lease is or was for the engine that it runs now."""
        return self.address == lease.address

    def status(self) -> ReplicaStatus:
        """The part of the state that users of the host see."""
        return ReplicaStatus(
            self.number,
            self.state,
            self.memory_bytes,
            len(self.leases),
            self.ready_at,
            adapters=self.slots.status(),
        )
