"""How many engines a model has, and which of them may leave: functions of the states of its replicas."""

from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from engines.pool.decisions import AddReplica, Resume, Waiter, Withdraw
from engines.pool.replica_state import ReplicaState
from engines.spec import ModelSpec
from engines.status import EngineState

StateT = TypeVar("StateT", bound=ReplicaState)


def replicas_needed(
    replicas: Iterable[ReplicaState], waiters: Collection[Waiter], queued: int, spec: ModelSpec
) -> int:
    """How many engines all requests take, and all different adapters at once.

    ``queued``: requests that do not wait for an engine yet, but for their turn at the model.
    """
    leases = [lease for replica in replicas for lease in replica.leases]
    requests = len(leases) + len(waiters) + queued
    adapters = [lease.adapter for lease in leases] + [waiter.adapter for waiter in waiters]
    digests = {adapter.digest for adapter in adapters if adapter is not None}
    slots = spec.lora.slots if spec.lora is not None else 1
    return max(-(-requests // spec.capacity), -(-len(digests) // slots))


def plan_wake(replicas: Sequence[ReplicaState], *, more: bool = False) -> Resume | AddReplica | None:
    """The wake that serves all waiters; None if it is under way. ``more``: although an engine is awake."""
    if any(replica.waking for replica in replicas):
        return None
    if not more and any(replica.suspected and not replica.retiring for replica in replicas):
        return None  # its health is being checked: it becomes ready, or breaks
    for replica in replicas:
        if replica.state is EngineState.PAUSED:
            return Resume(replica.number)
    if more or all(replica.retiring for replica in replicas):
        return AddReplica()
    return None  # one is going to sleep or is being dumped, and a wake follows if waiters remain


def plan_more(replicas: Sequence[ReplicaState], needed: int, max_replicas: int) -> list[Resume | AddReplica]:
    """Wakes until ``needed`` engines are awake or waking, beside at least one that already is."""
    awake = sum(replica.waking or replica.grantable for replica in replicas)
    if not awake:
        return []
    missing = max(0, min(needed, max_replicas) - awake)
    paused = [replica for replica in replicas if replica.state is EngineState.PAUSED]
    resumed = [Resume(replica.number) for replica in paused[:missing]]
    added = min(missing - len(resumed), max_replicas - len(replicas))
    return [*resumed, *(AddReplica() for _ in range(added))]


def plan_withdrawals(replicas: Sequence[ReplicaState], needed: int) -> list[Withdraw]:
    """The replicas that still wait for memory themselves, beyond the number that is needed; the newest go."""
    waiting = [replica for replica in replicas if replica.waits_for_memory]
    others = sum(replica.state is not EngineState.DRAINING for replica in replicas) - len(waiting)
    return [Withdraw(replica.number) for replica in waiting[max(0, needed - others) :]]


def missing_hot(replicas: Iterable[ReplicaState], min_hot: int) -> bool:
    """Whether there are fewer engines than are always to be hot."""
    return sum(replica.state is not EngineState.DRAINING for replica in replicas) < min_hot


def evictable(replicas: Iterable[StateT], min_hot: int) -> list[StateT]:
    """The idle engines beyond ``min_hot`` that hold memory, the one that has been idle longest first."""
    replicas = list(replicas)
    spare = sum(replica.state is EngineState.READY for replica in replicas) - min_hot
    if min_hot and spare <= 0:
        return []
    chosen = []
    for replica in sorted(replicas, key=lambda replica: replica.idle_since):
        if not replica.idle or replica.claim.reservation is None:
            continue
        if replica.state is EngineState.READY:
            if spare <= 0:
                continue
            spare -= 1
        chosen.append(replica)
    return chosen


def kept_bytes(replicas: Iterable[ReplicaState], min_hot: int) -> int:
    """Bytes of the engines that never sleep."""
    staying = (replica.claim for replica in replicas if replica.state is not EngineState.DRAINING)
    sizes = (claim.reservation.size for claim in staying if claim.reservation is not None)
    return sum(sorted(sizes)[:min_hot])
