"""Watching an engine: has it ended, does it answer, how much memory does it use."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from engines.lifecycle.engine import Engine
from engines.policy import HostPolicy

# Measuring 3 GB takes the kernel 50 ms.
_CHECKS_PER_MEASUREMENT = 6


@dataclass(frozen=True, slots=True)
class Watch:
    """``on_broken`` is told how the engine failed, ``on_measured`` its memory in bytes."""

    engine: Engine
    policy: HostPolicy
    on_broken: Callable[[str], None]
    on_measured: Callable[[int], None]

    async def end(self) -> None:
        """Until its processes have ended."""
        self.on_broken(await self.engine.ended())

    async def health(self) -> None:
        """Until it has failed several health checks in a row."""
        failures = 0
        for turn in itertools.count():
            if failures == self.policy.health_failures:
                break
            await asyncio.sleep(self.policy.health_interval_s)
            # Not at once: it holds the engine's memory map, which the request that woke it needs.
            if turn % _CHECKS_PER_MEASUREMENT == 0:
                self.on_measured(await asyncio.to_thread(self.engine.memory_bytes))
            failures = 0 if await self.engine.healthy() else failures + 1
        self.on_broken("the engine does not answer its health check")
