"""Those who wait for an engine."""

import asyncio
from dataclasses import dataclass
from typing import Any

from coldstart.tiers import SleepTier
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
