"""What can be seen of a replica: by its actor, the router, and whoever decides on its sleep."""

import time

from coldstart.tiers import SleepTier
from engines.pool.adapter_residency import Residency
from engines.pool.memory_claim import Claim
from engines.spec import EngineAddress
from engines.status import EngineLease, EngineState, ReplicaStatus, Wake


class ReplicaView:
    """Its state, its leases, its memory. `engines.pool.replica.Replica` alone changes them."""

    adapters: Residency

    def __init__(self, number: int, claim: Claim) -> None:
        self.number = number
        self.state = EngineState.COLD
        self.leases: set[EngineLease] = set()
        self.address: EngineAddress | None = None  # of the engine that runs
        self.source = SleepTier.COLD
        self.idle_since = time.monotonic()
        self.ready_at: float | None = None  # unix
        self.memory_bytes = 0
        self.wakes: list[Wake] = []
        self.suspected = False  # somebody saw it fail, and it is being asked whether it is well
        self.unproven = False  # its canary has not answered yet
        self.unfit = False  # it broke because its canary differed
        self.broke_unproven = False  # it broke before its canary had answered
        self.snapshot_id: str | None = None  # the one that it was restored from
        self.pinned = False  # it must not be put to sleep: a snapshot of it is being made
        self.condemned = False  # it is not trusted any more, and ends with its last request
        self.claim = claim
        self._awake_at = 0.0

    @property
    def grantable(self) -> bool:
        """Whether requests may be sent to it."""
        return self.state is EngineState.READY and not self.suspected

    @property
    def waking(self) -> bool:
        """Whether it will be ready without being asked again."""
        return self.state in (EngineState.STARTING, EngineState.RESTORING)

    @property
    def idle(self) -> bool:
        """Whether it could be put to sleep without anybody's noticing."""
        return not self.busy and self.state in (EngineState.READY, EngineState.PAUSED)

    @property
    def busy(self) -> bool:
        """Whether it does anything for anybody."""
        return bool(self.leases) or self.adapters.changing

    @property
    def waits_for_memory(self) -> bool:
        """Whether its wake has not begun, for want of memory."""
        return self.waking and self.claim.reservation is None

    @property
    def uptime_s(self) -> float:
        """Since its last wake."""
        return time.monotonic() - self._awake_at

    def serves(self, lease: EngineLease) -> bool:
        """Whether the engine that it runs is the one which the lease was for, also when it was given back."""
        return self.address == lease.address

    def woken_since(self, moment: float) -> bool:
        """Whether its last wake ended after the moment, in CLOCK_MONOTONIC's seconds."""
        return self._awake_at > moment

    def status(self) -> ReplicaStatus:
        """As it is now."""
        adapters = self.adapters.status()
        in_flight = len(self.leases)
        return ReplicaStatus(
            self.number, self.state, self.memory_bytes, in_flight, self.ready_at, adapters=adapters
        )
