"""An engine that a request saw fail: it gives no lease until its health is known."""

from dataclasses import replace
from pathlib import Path

from coldstart.tiers import SleepTier
from engines.client.engine_client import EngineClient
from engines.host import EngineHost
from tests.engines.support import QUICK, Starts, spec

# The periodic check would find out too, but long after the next request.
SELDOM = replace(QUICK, health_interval_s=60.0)


async def test_a_well_engine_is_kept(run_dir: Path) -> None:
    starts = Starts()
    host = EngineHost([spec()], run_dir=run_dir, policy=SELDOM, make=starts)
    async with host as engines, engines.acquire("model") as lease:
        engines.report_broken(lease)
        async with engines.acquire("model") as next_one:
            assert next_one.tier is SleepTier.HOT
            assert next_one.address == lease.address
    assert len(starts.created) == 1


async def test_a_sick_engine_is_replaced_before_the_next_lease(run_dir: Path) -> None:
    starts = Starts()
    async with EngineHost([spec()], run_dir=run_dir, policy=SELDOM, make=starts) as engines:
        async with engines.acquire("model") as lease, EngineClient(lease.address) as client:
            await client.request("POST", "/deafen", b"", timeout_s=5)
            engines.report_broken(lease)
        async with engines.acquire("model") as fresh:
            assert fresh.tier is SleepTier.COLD
            assert fresh.address != lease.address
    assert len(starts.created) == 2
