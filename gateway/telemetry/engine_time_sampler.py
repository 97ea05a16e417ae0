"""Watches the host's engines, for the engine-seconds of the ledger."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine

from engines.host import EngineHost
from engines.status import EngineState
from metering.reports.engine_times import EngineClock, Sample, store_times
from tenants.errors import StorageUnavailable

_logger = logging.getLogger("torpor.ledger")

SAMPLE_S = 0.5
STORE_S = 10.0
_WAKING = (EngineState.STARTING, EngineState.RESTORING)
_AWAKE = (EngineState.READY, EngineState.DRAINING)


@asynccontextmanager
async def watched(host: EngineHost, database: AsyncEngine, owner: str) -> AsyncIterator[None]:
    """Sample the host as long as it lasts, and store what was seen at its end."""
    clock = EngineClock(time.time, time.monotonic)
    task = asyncio.create_task(_watch(host, clock, database, owner), name="engine times")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        clock.sample(samples(host))
        await _store(clock, database, owner)


def samples(host: EngineHost) -> Iterator[Sample]:
    """What the engines that this host runs do now."""
    for status in host.status():
        busy = idle = waking = 0
        for replica in status.replicas:
            waking += replica.state in _WAKING
            awake = replica.state in _AWAKE
            busy += awake and replica.in_flight > 0
            idle += awake and replica.in_flight == 0
        yield Sample(status.id, busy, idle, waking)


async def _watch(host: EngineHost, clock: EngineClock, database: AsyncEngine, owner: str) -> None:
    stored = time.monotonic()
    while True:
        clock.sample(samples(host))
        if time.monotonic() - stored >= STORE_S:
            stored = time.monotonic()
            await _store(clock, database, owner)
        await asyncio.sleep(SAMPLE_S)


async def _store(clock: EngineClock, database: AsyncEngine, owner: str) -> None:
    times = clock.take()
    try:
        await store_times(database, owner, times)
    except StorageUnavailable:
        clock.give_back(times)
        _logger.warning("the time of engines cannot be written now; it is kept in memory")
