"""What has been spent in the month of a request: read from the ledger before the budgets are asked."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

from tenants.errors import StorageUnavailable
from tenants.limits.budgets import Budgets, month_of

_READ_S = 10.0


class ReadSpend(Protocol):
    """Reads the ledger: picodollars by project and organization, between two times in unix seconds."""

    def __call__(self, since: int, *, until: int) -> Awaitable[Mapping[str, int]]: ...


class MonthlySpend:
    """Loads months into the budgets: the one that a request belongs to, and the next one in advance.

    So a month turns without the database, and a clock that jumps to another month, and back, meets what the
    ledger has of it. A month that is not in memory has no running request of this process, so everything
    that it has settled there is in the ledger once ``applied`` returns ``True``.
    """

    def __init__(
        self, budgets: Budgets, read: ReadSpend, applied: Callable[[], Awaitable[bool]] | None = None
    ) -> None:
        self._budgets = budgets
        self._read = read
        self._applied = applied
        self._month: int | None = None
        self._before: int | None = None
        self._loading: dict[int, asyncio.Task[None]] = {}

    async def ready(self, at: float) -> None:
        """Return when the spend of the month of ``at`` (unix seconds) is known.

        Raises `StorageUnavailable` if it cannot be read now.
        """
        month = self._budgets.month_start(at)
        if month == self._month:
            return
        following = month_of(at)[1]
        if self._budgets.loaded(month):
            # No request waits for the next month: the first that needs it finds it loaded, or loads it.
            self._load(following)
        else:
            self._load(following)
            await asyncio.shield(self._load(month))
        self._turn_to(month, following)

    def _turn_to(self, month: int, following: int) -> None:
        """Keep this month, the next one, and the one before, to which late requests may belong."""
        if month != self._month:
            self._month, self._before = month, self._month
        for other in self._budgets.months():
            if other not in (month, following, self._before):
                self._budgets.forget(other)

    def _load(self, month: int) -> "asyncio.Task[None]":
        """One reader at a time for each month."""
        task = self._loading.get(month)
        if task is None:
            task = self._loading[month] = asyncio.create_task(self._read_month(month), name="monthly spend")
            task.add_done_callback(partial(self._loaded, month))
        return task

    def _loaded(self, month: int, task: "asyncio.Task[None]") -> None:
        del self._loading[month]
        if not task.cancelled():
            task.exception()  # raised where it is awaited; the next month is not awaited

    async def _read_month(self, month: int) -> None:
        if self._budgets.loaded(month):
            return
        try:
            async with asyncio.timeout(_READ_S):
                if self._applied is not None and not await self._applied():
                    raise StorageUnavailable("the ledger is behind: what was spent is not known")
                spent = await self._read(month, until=month_of(month)[1])
        except TimeoutError:
            raise StorageUnavailable("the ledger cannot be read") from None
        if not self._budgets.loaded(month):
            self._budgets.load(spent, month)
