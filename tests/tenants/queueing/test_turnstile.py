"""Slots are neither lost nor given twice, whatever is cancelled in whatever moment."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenants.errors import QueueFull, QueueTimeout
from tenants.queueing.fair_queue import FairQueue, FifoQueue, Ticket
from tenants.queueing.turnstile import Turn, Turnstile


def ticket(project: str = "a", cost: float = 100.0) -> Ticket:
    return Ticket(project_id=project, cost=cost)


@asynccontextmanager
async def _slot(turnstile: Turnstile, ticket: Ticket, timeout_s: float | None = None) -> AsyncIterator[Turn]:
    """A slot of the turnstile, which is free at the end of the context."""
    turn = await turnstile.enter(ticket, timeout_s)
    try:
        yield turn
    finally:
        turn.end(0.0)


def _is_idle(turnstile: Turnstile) -> bool:
    return (turnstile.running, turnstile.waiting) == (0, 0)


async def _turns() -> None:
    """Lets every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


class Crowd:
    """Requests of a turnstile, each of which holds its slot until it is told to end."""

    def __init__(self, turnstile: Turnstile) -> None:
        self.turnstile = turnstile
        self.tasks: list[asyncio.Task[None]] = []
        self.inside: dict[int, Turn] = {}
        self.peak = 0
        self._doors: dict[int, asyncio.Event] = {}

    def come(self, project: str = "a", **options: float) -> int:
        number = len(self.tasks)
        self._doors[number] = asyncio.Event()
        self.tasks.append(asyncio.create_task(self._be(number, project, **options)))
        return number

    async def _be(self, number: int, project: str, **options: float) -> None:
        async with _slot(self.turnstile, ticket(project), **options) as turn:
            self.inside[number] = turn
            self.peak = max(self.peak, len(self.inside))
            try:
                await self._doors[number].wait()
            finally:
                del self.inside[number]

    def end(self, number: int) -> None:
        self._doors[number].set()

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_the_rest_waits_and_a_slot_wakes_one() -> None:
    crowd = Crowd(Turnstile(FairQueue(), slots=2))
    for _ in range(5):
        crowd.come()
    await _turns()
    assert (sorted(crowd.inside), crowd.turnstile.waiting) == ([0, 1], 3)
    crowd.end(0)
    await _turns()
    assert (sorted(crowd.inside), crowd.turnstile.waiting) == ([1, 2], 2)
    await crowd.leave()
    assert _is_idle(crowd.turnstile)


async def test_cancelled_in_the_moment_of_the_grant_hands_the_slot_on() -> None:
    turnstile = Turnstile(FairQueue(), slots=1)
    crowd = Crowd(turnstile)
    for _ in range(3):
        crowd.come()
    await _turns()
    # In one go, before the task of the second can run: its future has its result, and then it is cancelled.
    crowd.inside[0].end(0.0)
    crowd.tasks[1].cancel()
    await _turns()
    assert list(crowd.inside) == [0, 2], "the first has given up its slot, the second never had it"
    assert turnstile.running == 1
    await crowd.leave()
    assert _is_idle(turnstile)


async def test_cancelled_just_before_the_grant_is_passed_over() -> None:
    turnstile = Turnstile(FairQueue(), slots=1)
    crowd = Crowd(turnstile)
    for _ in range(3):
        crowd.come()
    await _turns()
    crowd.tasks[1].cancel()
    crowd.inside[0].end(0.0)
    await _turns()
    assert list(crowd.inside) == [0, 2]
    await crowd.leave()
    assert _is_idle(turnstile)


async def test_a_turn_ends_once() -> None:
    turnstile = Turnstile(FairQueue(), slots=2)
    async with _slot(turnstile, ticket()) as turn, _slot(turnstile, ticket()):
        turn.end(1.0)
        turn.end(1.0)
        assert turnstile.running == 1
    assert turnstile.running == 0


async def test_the_queue_of_a_project_is_bounded() -> None:
    turnstile = Turnstile(FairQueue(), slots=1, max_queued=2)
    crowd = Crowd(turnstile)
    for _ in range(3):
        crowd.come("a")
    await _turns()
    with pytest.raises(QueueFull) as caught:
        async with _slot(turnstile, ticket("a")):
            pass
    assert (caught.value.limit, caught.value.retry_after_s) == (2, 3.0)
    crowd.come("b")
    await _turns()
    assert turnstile.waiting == 3, "another project's queue is its own"
    await crowd.leave()
    assert _is_idle(turnstile)


async def test_waiting_for_a_turn_is_bounded_in_time() -> None:
    turnstile = Turnstile(FairQueue(), slots=1)
    async with _slot(turnstile, ticket()):
        with pytest.raises(QueueTimeout) as caught:
            async with _slot(turnstile, ticket(), 0.02):
                pass
        assert caught.value.waited_s == 0.02
        assert turnstile.waiting == 0
    assert _is_idle(turnstile)


async def test_the_retry_follows_how_long_slots_are_held() -> None:
    now = 0.0
    turnstile = Turnstile(FairQueue(), slots=1, max_queued=1, clock=lambda: now)
    for _ in range(100):
        async with _slot(turnstile, ticket()):
            now += 20.0
    crowd = Crowd(turnstile)
    crowd.come()
    crowd.come()
    await _turns()
    with pytest.raises(QueueFull) as caught:
        async with _slot(turnstile, ticket()):
            pass
    assert caught.value.retry_after_s == pytest.approx(40, abs=1)
    await crowd.leave()


async def test_more_slots_let_more_through_and_fewer_take_none_away() -> None:
    turnstile = Turnstile(FairQueue(), slots=1)
    crowd = Crowd(turnstile)
    for _ in range(6):
        crowd.come()
    await _turns()
    turnstile.resize(4)
    await _turns()
    assert len(crowd.inside) == 4
    turnstile.resize(1)
    crowd.end(0)
    await _turns()
    assert len(crowd.inside) == 3
    await crowd.leave()
    assert _is_idle(turnstile)


async def test_reserved_slots_are_kept_for_those_who_have_none() -> None:
    crowd = Crowd(Turnstile(FairQueue(), slots=4, reserved=1))
    for _ in range(6):
        crowd.come("flood")
    await _turns()
    assert len(crowd.inside) == 3
    rare = crowd.come("rare")
    await _turns()
    assert rare in crowd.inside
    await crowd.leave()


async def test_how_many_wait_is_told_when_it_changes() -> None:
    answer: list[int] = []
    turnstile = Turnstile(FairQueue(), slots=1, on_change=answer.append)
    crowd = Crowd(turnstile)
    for _ in range(3):
        crowd.come()
    await _turns()
    crowd.tasks[2].cancel()
    await _turns()
    crowd.end(0)
    await _turns()
    assert answer == [1, 2, 1, 0]
    await crowd.leave()


Step = tuple[str, int, str]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "end", "cancel", "turns", "resize"]),
        st.integers(0, 40),
        st.sampled_from("abc"),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, fair=st.booleans(), slots=st.integers(1, 4), reserved=st.integers(0, 2))
def test_no_slot_is_lost_or_given_twice(steps: list[Step], fair: bool, slots: int, reserved: int) -> None:
    """Everything may happen between two turns of the event loop, in any order."""

    async def run() -> None:
        turnstile = Turnstile(
            FairQueue() if fair else FifoQueue(), slots=slots, reserved=min(reserved, slots - 1), max_queued=5
        )
        crowd, most = Crowd(turnstile), slots
        for what, number, project in steps:
            if what == "come":
                crowd.come(project)
            elif what == "end" and number < len(crowd.tasks):
                crowd.end(number)
            elif what == "cancel" and number < len(crowd.tasks):
                crowd.tasks[number].cancel()
            elif what == "resize":
                turnstile.resize(1 + number % 5, 0)
                most = max(most, 1 + number % 5)
            elif what == "turns":
                await _turns()
                assert turnstile.running == len(crowd.inside), "a slot for each who is inside"
                if turnstile._reserved == 0:
                    assert not turnstile.waiting or turnstile.running >= turnstile._slots, "work conserving"
        await _turns()
        assert crowd.peak <= most
        for number in range(len(crowd.tasks)):
            crowd.end(number)
        await asyncio.wait_for(asyncio.gather(*crowd.tasks, return_exceptions=True), 5)
        refused = [task.exception() for task in crowd.tasks if not task.cancelled() and task.exception()]
        assert all(isinstance(error, QueueFull) for error in refused)
        assert _is_idle(turnstile)
        assert not turnstile._waiters

    asyncio.run(run())


async def test_the_order_is_the_same_in_every_run() -> None:
    async def order() -> list[str]:
        turnstile, seen = Turnstile(FairQueue(), slots=1), []

        async def be(project: str) -> None:
            async with _slot(turnstile, ticket(project)) as turn:
                seen.append(project)
                turn.end(100.0)

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(_slot(turnstile, ticket("z")))
            waiting = [asyncio.create_task(be(name)) for name in "aaabbcabc"]
            await _turns()
        await asyncio.gather(*waiting)
        return seen

    first = await order()
    assert first == await order()
    assert first[:3] == ["a", "b", "c"]


async def test_a_request_of_several_sequences_takes_the_slots_that_are_free() -> None:
    turnstile = Turnstile(FairQueue(), slots=8, reserved=2)
    async with _slot(turnstile, ticket("a")) as single, _slot(turnstile, _wide("b", 100)) as wide:
        assert (single.slots, wide.slots) == (1, 5), "what is reserved stays free"
        async with _slot(turnstile, _wide("c", 100)) as reserved:
            assert reserved.slots == 1
            waiting = asyncio.create_task(turnstile.enter(_wide("b", 3)))
            await _turns()
            assert not waiting.done()
            wide.end(1.0)
            await _turns()
            assert waiting.result().slots == 3
            assert turnstile.running == 3
            waiting.result().end(0.0)
    assert _is_idle(turnstile)
    async with _slot(turnstile, _wide("a", 100)) as all_of_them:
        assert all_of_them.slots == 6, "no slot was lost"


def _wide(project: str, sequences: int) -> Ticket:
    return Ticket(project_id=project, cost=100.0, slots=sequences)
