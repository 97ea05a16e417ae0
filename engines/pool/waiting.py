"""Those who wait for an engine."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from coldstart.tiers import SleepTier
from engines.adapter import Adapter
from engines.pool.placement import Places
from engines.pool.replica import Replica
from engines.pool.routing import Router
from engines.spec import ModelSpec
from engines.status import EngineLease


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody who wants the engine awake, with a lease on it or without."""

    wants_lease: bool
    prefix: int | None = None
    adapter: Adapter | None = None
    found: SleepTier = SleepTier.COLD
    asked_at: float = field(default_factory=time.monotonic)
    result: asyncio.Future[EngineLease | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def needed(replicas: Sequence[Replica], waiters: Iterable[Waiter], queued: int, spec: ModelSpec) -> int:
    """How many engines all that is asked for takes: requests, and adapters at once."""
    waiting = list(waiters)
    leases = [lease for replica in replicas for lease in replica.leases]
    requests = len(leases) + len(waiting) + queued
    adapters = [lease.adapter for lease in leases] + [waiter.adapter for waiter in waiting]
    used = {adapter.digest for adapter in adapters if adapter is not None}
    slots = spec.lora.slots if spec.lora is not None else 1
    return max(-(-requests // spec.capacity), -(-len(used) // slots))


def serve(waiters: dict[Waiter, None], replicas: Sequence[Replica], router: Router, max_running: int) -> None:
    """Grant what can be granted, in the order of ``waiters``, and take it off them.

    An engine is given ``max_running`` leases at once; more only where no other engine is on its way. For an
    adapter that must be loaded first, its load is begun.
    """
    full = max_running if any(replica.waking for replica in replicas) else float("inf")
    awake = [replica for replica in replicas if replica.grantable]
    places = Places()
    for waiter in list(waiters) if awake else ():
        if waiter.result.done():
            del waiters[waiter]
            continue
        free = [replica for replica in awake if len(replica.leases) < full]
        if waiter.adapter is not None:
            replica = places.find(waiter.adapter, free)
        else:
            replica = router.choose(free if waiter.wants_lease else awake, waiter.prefix)
        if replica is not None:
            del waiters[waiter]
            _grant(waiter, replica)


def _grant(waiter: Waiter, replica: Replica) -> None:
    if not waiter.wants_lease:
        waiter.result.set_result(None)
        return
    hot = waiter.found is SleepTier.HOT and not replica.woken_since(waiter.asked_at)
    found = SleepTier.HOT if hot else replica.source
    waited_s = 0.0 if hot else time.monotonic() - waiter.asked_at
    waiter.result.set_result(replica.lease(found, waited_s, waiter.adapter))
