"""Aggregates the status of a model's replicas."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from coldstart.tiers import SleepTier
from engines.pool.replica_state import ReplicaState
from engines.status import AdapterCounts, EngineState, EngineStatus, Wake

_UNKNOWN_START_S = 5.0
_AWAKE_FIRST = {
    state: rank
    for rank, state in enumerate(
        (
            EngineState.READY,
            EngineState.SNAPSHOTTING,
            EngineState.PAUSED,
            EngineState.RESTORING,
            EngineState.STARTING,
            EngineState.DRAINING,
            EngineState.FAILED,
            EngineState.COLD,
        )
    )
}
"""The most awake first: a model's state is that of its first replica in this order."""


def most_awake(replicas: Sequence[ReplicaState]) -> EngineState:
    """The state of the model: that of its most awake replica."""
    states = (replica.state for replica in replicas)
    return min(states, key=_AWAKE_FIRST.__getitem__, default=EngineState.COLD)


def tier_of(state: EngineState, replicas: Sequence[ReplicaState], *, has_snapshot: bool) -> SleepTier:
    """The tier that a request would find; ``has_snapshot``: a wake would use a snapshot."""
    if state in (EngineState.READY, EngineState.DRAINING, EngineState.SNAPSHOTTING):
        return SleepTier.HOT
    if state is EngineState.PAUSED:
        return SleepTier.PAUSED
    if replicas:
        return replicas[0].source
    return SleepTier.SNAPSHOT if has_snapshot else SleepTier.COLD


def expected_start_s(wakes: Sequence[Wake], began: float | None) -> float:
    """How long it probably takes until an engine is awake.

    ``began``: when a wake that is under way began, in CLOCK_MONOTONIC's seconds.
    """
    if not wakes:
        return _UNKNOWN_START_S
    elapsed = 0.0 if began is None else time.monotonic() - began
    return min(60.0, max(1.0, wakes[-1].ms["total"] / 1000 - elapsed))


def summary(
    model_id: str,
    replicas: Sequence[ReplicaState],
    state: EngineState,
    tier: SleepTier,
    failure: str | None,
    wakes: Iterable[Wake],
    adapters: AdapterCounts,
) -> EngineStatus:
    """The status of a model: its replicas, and their sums."""
    started = [replica.ready_at for replica in replicas if replica.ready_at]
    return EngineStatus(
        id=model_id,
        state=state,
        tier=tier,
        memory_bytes=sum(replica.memory_bytes for replica in replicas),
        in_flight=sum(len(replica.leases) for replica in replicas),
        started_at=min(started) if started else None,
        failure=failure,
        wakes=tuple(wakes),
        replicas=tuple(replica.status() for replica in replicas),
        adapters=adapters,
    )


def joined(shared: EngineStatus, pools: Mapping[str, EngineStatus]) -> EngineStatus:
    """The status of a model whose shared engines and pools of projects have one each."""
    parts = (shared, *(_named(pool, status) for pool, status in pools.items()))
    first = min(parts, key=lambda part: _AWAKE_FIRST[part.state])
    started = [part.started_at for part in parts if part.started_at]
    return EngineStatus(
        id=shared.id,
        state=first.state,
        tier=first.tier,
        memory_bytes=sum(part.memory_bytes for part in parts),
        in_flight=sum(part.in_flight for part in parts),
        started_at=min(started) if started else None,
        failure=next((part.failure for part in parts if part.failure), None),
        wakes=tuple(sorted((wake for part in parts for wake in part.wakes), key=lambda wake: wake.at)),
        replicas=tuple(replica for part in parts for replica in part.replicas),
        adapters=AdapterCounts(
            sum(part.adapters.loads for part in parts),
            sum(part.adapters.misfits for part in parts),
            sum(part.adapters.engines_given_up for part in parts),
        ),
    )


def _named(pool: str, status: EngineStatus) -> EngineStatus:
    return replace(status, replicas=tuple(replace(replica, pool=pool) for replica in status.replicas))
