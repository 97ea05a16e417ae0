"""Threads for calls that may block for long and cannot be cancelled: lookups of names, SMTP.

They are bounded, and apart from the event loop's default pool, where a few calls that hang would stall
everything else that runs there: counting of prompts, uploads, snapshots.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class BoundedThreads:
    """Runs each call in its own daemon thread: at most ``most`` at once, ``most_of_one`` of one owner.

    A call whose caller has given up counts until it returns, so calls that hang are bounded
    too. They do not delay the end of the process. For one event loop.
    """

    def __init__(self, name: str, *, most: int, most_of_one: int) -> None:
        self._name = name
        self._most = most
        self._most_of_one = most_of_one
        self._running: Counter[str] = Counter()
        self._waiters: list[tuple[str, asyncio.Future[None]]] = []

    @property
    def running(self) -> int:
        """How many threads there are."""
        return self._running.total()

    async def run(self, owner: str, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises. Waits while the owner, or all together, have their most."""
        await self._enter(owner)
        done: Future[T] = Future()
        done.add_done_callback(partial(self._ended, asyncio.get_running_loop(), owner))
        work = partial(_work, call, done)
        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except RuntimeError as error:  # the process has no more threads
            done.set_exception(error)
        # A cancelled wait must not cancel ``done``: that would free the place of a thread that still runs.
        return await asyncio.shield(asyncio.wrap_future(done))

    async def _enter(self, owner: str) -> None:
        """Take a place, in the order of arrival among those for whom there is one."""
        if self._has_room(owner):
            self._running[owner] += 1
            return
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = owner, entered
        self._waiters.append(waiter)
        try:
            await entered
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif not entered.cancelled():
                self._leave(owner)
            raise

    def _has_room(self, owner: str) -> bool:
        return self.running < self._most and self._running[owner] < self._most_of_one

    def _ended(self, loop: asyncio.AbstractEventLoop, owner: str, _: "Future[Any]") -> None:
        with suppress(RuntimeError):  # the loop is closed: no caller waits
            loop.call_soon_threadsafe(self._leave, owner)

    def _leave(self, owner: str) -> None:
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        for waiter in tuple(self._waiters):
            waiting_owner, entered = waiter
            if self._has_room(waiting_owner):
                self._waiters.remove(waiter)
                if not entered.done():
                    self._running[waiting_owner] += 1
                    entered.set_result(None)


def _work(call: Callable[[], T], done: "Future[T]") -> None:
    try:
        done.set_result(call())
    except Exception as error:  # noqa: BLE001 - raised where the call is awaited
        done.set_exception(error)
