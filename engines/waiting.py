"""Those who wait for an engine."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coldstart.tiers import SleepTier
from engines.replica import Replica
from engines.routing import Router
from engines.status import EngineLease


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody who wants the engine awake, with a lease on it or without."""

    result: asyncio.Future[EngineLease | None]
    wants_lease: bool
    asked_at: float
    found: SleepTier = SleepTier.COLD
    prefix: int | None = None


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def serve(waiters: dict[Waiter, None], replicas: Sequence[Replica], router: Router, max_running: int) -> None:
    """Grant what can be granted, in the order of ``waiters``, and take it off them.

    An engine is given ``max_running`` leases at once; more only where no other engine is on its way.
    """
    full = max_running if any(replica.waking for replica in replicas) else float("inf")
    awake = [replica for replica in replicas if replica.grantable]
    for waiter in list(waiters) if awake else ():
        free = [replica for replica in awake if len(replica.leases) < full]
        replica = router.choose(free if waiter.wants_lease else awake, waiter.prefix)
        if replica is not None:
            del waiters[waiter]
            _grant(waiter, replica)


def _grant(waiter: Waiter, replica: Replica) -> None:
    if waiter.result.done():
        return
    if not waiter.wants_lease:
        waiter.result.set_result(None)
        return
    hot = waiter.found is SleepTier.HOT and not replica.woken_since(waiter.asked_at)
    found = SleepTier.HOT if hot else replica.source
    waiter.result.set_result(replica.lease(found, 0.0 if hot else time.monotonic() - waiter.asked_at))
