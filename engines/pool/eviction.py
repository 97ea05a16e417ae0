"""Which of a model's engines may be put to sleep when memory is short, and what is never given back."""

from collections.abc import Callable, Sequence
from functools import partial

from engines.pool.memory_budget import Victim
from engines.pool.replica import Replica
from engines.status import EngineState


def victims(
    replicas: Sequence[Replica], min_hot: int, post: Callable[[Callable[[], None]], None]
) -> list[Victim]:
    """Idle engines beyond ``min_hot``; ``post`` is given what puts one to sleep."""
    spare = sum(replica.state is EngineState.READY for replica in replicas) - min_hot
    if min_hot and spare <= 0:
        return []
    found = []
    for replica in sorted(replicas, key=lambda replica: replica.idle_since):
        reservation = replica.claim.reservation
        if not replica.idle or replica.pinned or reservation is None:
            continue
        if replica.state is EngineState.READY:
            spare -= 1
            if spare < 0:
                continue
        found.append(Victim(replica.idle_since, reservation, partial(post, replica.leave)))
    return found


def kept_bytes(replicas: Sequence[Replica], min_hot: int) -> int:
    """What the engines have that never sleep."""
    staying = (replica.claim for replica in replicas if replica.state is not EngineState.DRAINING)
    sizes = (claim.reservation.size for claim in staying if claim.reservation is not None)
    return sum(sorted(sizes)[:min_hot])


def superfluous(replicas: Sequence[Replica], wanted: int) -> list[Replica]:
    """Those that wait for memory themselves, beyond the number that is wanted."""
    queued = [replica for replica in replicas if replica.waits_for_memory]
    others = sum(replica.state is not EngineState.DRAINING for replica in replicas) - len(queued)
    return queued[max(0, wanted - others) :]
