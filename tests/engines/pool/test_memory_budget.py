"""Who gets the host's memory, and who must leave for it."""

import asyncio
from collections.abc import Sequence

import pytest

from engines.errors import InsufficientMemory
from engines.pool.memory_budget import MemoryBudget, MemoryReservation, Victim


class Memory:
    """A budget of 10, and engines that are idle in the order of their names."""

    def __init__(self) -> None:
        self.idle: dict[str, MemoryReservation] = {}
        self.evicted: list[str] = []
        self.kept = 0
        self.budget = MemoryBudget(10, self._victims, lambda: self.kept)

    def _victims(self) -> list[Victim]:
        return [
            Victim(ord(name), reservation, lambda name=name: self.evicted.append(name))  # type: ignore[misc]
            for name, reservation in self.idle.items()
        ]

    async def hold(self, size: int) -> MemoryReservation:
        """An engine that is in use."""
        async with asyncio.timeout(1):
            return await self.budget.reserve(size)

    async def fill(self, **sizes: int) -> None:
        """With idle engines."""
        for name, size in sizes.items():
            self.idle[name] = await self.hold(size)

    async def want(self, size: int) -> asyncio.Task[MemoryReservation]:
        """A claim that waits, or is granted at once."""
        task = asyncio.create_task(self.budget.reserve(size))
        for _ in range(3):
            await asyncio.sleep(0)
        return task

    async def end(self, name: str) -> None:
        """The processes of an engine have ended."""
        self.idle.pop(name).release()
        await asyncio.sleep(0)


async def given_up(*tasks: asyncio.Task[MemoryReservation]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_what_is_being_freed_is_waited_for() -> None:
    memory = Memory()
    await memory.fill(a=3, b=3, c=3)
    waiting = await memory.want(4)
    assert memory.evicted == ["a"]
    memory.budget.recheck()
    memory.idle["b"].adjust(3)
    assert memory.evicted == ["a"]
    await memory.end("a")
    assert (await waiting).size == 4
    assert memory.evicted == ["a"]


async def test_another_leaves_when_the_first_is_needed_again() -> None:
    memory = Memory()
    await memory.fill(a=5, b=5)
    waiting = await memory.want(4)
    reservation = memory.idle.pop("a")
    reservation.stay()
    assert memory.evicted == ["a", "b"]
    await memory.end("b")
    assert (await waiting).size == 4


@pytest.mark.parametrize(
    ("sizes", "needed", "leave"),
    [
        ((3, 3, 3), 3, "a"),
        ((3, 3, 3), 6, "ab"),
        ((1, 1, 8), 7, "c"),
        ((1, 1, 8), 9, "ac"),
        ((2, 4, 4), 10, "abc"),
    ],
)
async def test_no_more_leave_than_are_needed_the_least_recently_used_first(
    sizes: Sequence[int], needed: int, leave: str
) -> None:
    memory = Memory()
    await memory.fill(**dict(zip("abc", sizes, strict=True)))
    await given_up(await memory.want(needed))
    assert "".join(sorted(memory.evicted)) == leave


async def test_nobody_leaves_when_all_together_do_not_suffice() -> None:
    memory = Memory()
    await memory.hold(4)
    await memory.fill(a=3, b=3)
    waiting = await memory.want(7)
    memory.budget.recheck()
    assert memory.evicted == []
    await given_up(waiting)


async def test_who_needs_less_goes_before_one_for_whom_there_can_be_no_room() -> None:
    memory = Memory()
    in_use = await memory.hold(4)
    huge = await memory.want(100)
    small = await memory.hold(5)
    assert not huge.done()
    small.release()
    in_use.release()
    assert (await huge).size == 100  # it is alone


async def test_nobody_goes_before_one_for_whom_room_is_being_made() -> None:
    memory = Memory()
    await memory.fill(a=8)
    first = await memory.want(6)
    second = await memory.want(1)
    assert not second.done()
    await memory.end("a")
    assert ((await first).size, (await second).size) == (6, 1)


async def test_what_can_never_be_had_is_refused() -> None:
    memory = Memory()
    memory.kept = 4
    await memory.hold(4)
    with pytest.raises(InsufficientMemory):
        await memory.hold(7)
    assert (await memory.hold(6)).size == 6


async def test_who_grows_over_the_limit_makes_idle_engines_leave() -> None:
    memory = Memory()
    await memory.fill(a=2, b=2)
    growing = await memory.hold(5)
    growing.adjust(7)
    assert memory.evicted == ["a"]
    growing.adjust(8)
    assert memory.evicted == ["a"]
    growing.adjust(9)
    assert memory.evicted == ["a", "b"]


async def test_one_that_is_alone_may_be_over_the_limit() -> None:
    memory = Memory()
    await memory.fill(a=20)
    memory.idle["a"].adjust(21)
    memory.budget.recheck()
    assert memory.evicted == []
