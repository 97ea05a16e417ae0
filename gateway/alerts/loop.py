"""Work that is done again and again beside the requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from metering.errors import MeteringError
from tenants.errors import TenantError

_logger = logging.getLogger("torpor.alerts")

AFTER_FAILURE_S = 5.0


class Loop:
    """Calls ``step`` until it is cancelled: the step says after how many seconds, and `wake` at once."""

    def __init__(
        self, step: Callable[[], Awaitable[float]], after_failure_s: float = AFTER_FAILURE_S
    ) -> None:
        self._step = step
        self._after_failure_s = after_failure_s
        self._failing = False
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is something to do. To be called in the event loop."""
        self._woken.set()

    async def run(self) -> None:
        """A step that fails is made again; what it was to do, it must find again by itself."""
        while True:
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(await self._delay()):
                    await self._woken.wait()

    async def _delay(self) -> float:
        try:
            delay = await self._step()
        except (TenantError, MeteringError) as error:
            # Once, not every few seconds for as long as a database is away.
            if not self._failing:
                _logger.error("spend alerts wait: %s", error)
        except Exception:
            _logger.exception("spend alerts wait")
        else:
            if self._failing:
                _logger.warning("spend alerts go on")
            self._failing = False
            return delay
        self._failing = True
        return self._after_failure_s
