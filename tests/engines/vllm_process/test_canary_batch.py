"""Canaries go to the engine core right before the first requests that depend on them, without delay."""

import asyncio
from dataclasses import dataclass, field

import pytest

from engines.vllm_process.canary_batch import CanaryTurn, FirstBatch, depends_on


@dataclass
class Lora:
    lora_name: str


@dataclass
class Request:
    request_id: str
    lora_request: Lora | None = None


@dataclass
class Core:
    """Stands for vLLM's client of the engine core; what was sent, in order."""

    sent: list[str] = field(default_factory=list)

    occupied: int = 0

    async def occupy(self) -> None:
        self.occupied += 1

    async def add_request_async(self, request: Request) -> None:
        self.sent.append(request.request_id)


FIRST, SECOND = Request("chatcmpl-1"), Request("chatcmpl-2")
FOR_A, FOR_B = Request("cmpl-a", Lora("a")), Request("cmpl-b", Lora("b"))


def canary(turn: CanaryTurn) -> Request:
    return Request(f"{turn.prefix}0-ab", None if turn.lora is None else Lora(turn.lora))


def sending(core: Core, request: Request) -> "asyncio.Task[None]":
    return asyncio.create_task(core.add_request_async(request))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_canary_waits_for_the_first_request_and_goes_first() -> None:
    core = Core()
    turn = FirstBatch(core, core.occupy).turn()
    its = sending(core, canary(turn))
    await settle()
    assert core.sent == []
    await asyncio.gather(its, sending(core, FIRST))
    assert core.sent == [canary(turn).request_id, FIRST.request_id]
    assert core.occupied == 1
    await sending(core, SECOND)
    assert core.occupied == 1
    turn.close(passed=True)
    assert await turn.passed()
    await sending(core, canary(turn))
    assert core.sent[2:] == [SECOND.request_id, canary(turn).request_id]


async def test_requests_wait_for_a_canary_that_is_not_yet_prepared() -> None:
    core = Core()
    turn = FirstBatch(core, core.occupy).turn()
    early = [sending(core, FIRST), sending(core, SECOND)]
    await settle()
    assert core.sent == []
    await asyncio.gather(sending(core, canary(turn)), *early)
    assert core.sent == [canary(turn).request_id, FIRST.request_id, SECOND.request_id]


async def test_a_canary_that_nobody_joins_goes_alone() -> None:
    core = Core()
    turn = FirstBatch(core, core.occupy, patience_s=0.01).turn()
    await asyncio.wait_for(sending(core, canary(turn)), 5)
    assert core.sent == [canary(turn).request_id]


async def test_a_canary_waits_longer_where_a_request_is_certain_to_come() -> None:
    core = Core()
    batch = FirstBatch(core, core.occupy, patience_s=0.01)
    turn = batch.turn()
    with batch.expect():
        its = sending(core, canary(turn))
        await asyncio.sleep(0.05)
        assert core.sent == []
    await asyncio.wait_for(its, 5)


async def test_an_adapters_canary_goes_with_the_first_request_for_it() -> None:
    core = Core()
    batch = FirstBatch(core, core.occupy)
    engine, adapter = batch.turn(), batch.turn("a")
    canaries = [sending(core, canary(engine)), sending(core, canary(adapter))]
    calls: dict[str, list[CanaryTurn]] = {"b": [], "a": []}
    for name, request in (("b", FOR_B), ("a", FOR_A)):
        depends_on.set(calls[name])
        await sending(core, request)
    await asyncio.gather(*canaries)
    assert core.sent[:2] == [canary(engine).request_id, FOR_B.request_id]
    assert core.sent[2:] == [canary(adapter).request_id, FOR_A.request_id]
    assert calls == {"b": [engine], "a": [engine, adapter]}
    adapter.close(passed=False)
    assert not await adapter.passed()
    assert batch.pending
    engine.close(passed=True)
    assert not batch.pending


@pytest.mark.parametrize("way", ["open", "close"])
async def test_who_waits_is_let_go(way: str) -> None:
    """A request needs an answer without the engine core, or the canary could not be sent."""
    core = Core()
    turn = FirstBatch(core, core.occupy).turn()
    waiting = sending(core, canary(turn) if way == "open" else FIRST)
    await settle()
    assert core.sent == []
    if way == "open":
        turn.open()
    else:
        turn.close(passed=False)
    await asyncio.wait_for(waiting, 5)
    assert len(core.sent) == 1
