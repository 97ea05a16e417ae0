"""What a replica leaves behind: nothing that runs, and nothing that is not counted."""

import asyncio
from pathlib import Path

from coldstart.tiers import SleepTier
from engines.errors import HostClosing
from engines.status import EngineState
from tests.engines.support import Starts, eventually, host, no_trace


async def test_leaving_the_host_waits_for_an_engine_that_is_being_stopped(run_dir: Path) -> None:
    async with host(run_dir, Starts("deaf=1")) as engines:
        await engines.wake("model")
        asleep = asyncio.create_task(engines.sleep("model", SleepTier.COLD))
        assert await eventually(lambda: engines.status()[0].state is EngineState.DRAINING)
        await engines.__aexit__(None, None, None)
        assert no_trace(run_dir)()
        await asyncio.wait((asleep,))
        assert isinstance(asleep.exception(), HostClosing)
