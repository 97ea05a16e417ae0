"""The canary and the first request are sent to the engine core in a row, and nobody waits for ever."""

import asyncio
from dataclasses import dataclass, field

import pytest

from engines import first_batch
from engines.first_batch import FirstBatch


@dataclass
class Request:
    request_id: str


@dataclass
class Core:
    """Stands for vLLM's client of the engine core; what was sent, in order."""

    sent: list[str] = field(default_factory=list)

    async def add_request_async(self, request: Request) -> None:
        self.sent.append(request.request_id)


CANARY, FIRST, SECOND = Request("torpor-canary-0-ab"), Request("chatcmpl-1"), Request("chatcmpl-2")


def sending(core: Core, request: Request) -> "asyncio.Task[None]":
    return asyncio.create_task(core.add_request_async(request))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_canary_waits_for_the_first_request_and_goes_first() -> None:
    core = Core()
    batch = FirstBatch(core)
    canary = sending(core, CANARY)
    await settle()
    assert core.sent == []
    await asyncio.gather(canary, sending(core, FIRST))
    assert core.sent == [CANARY.request_id, FIRST.request_id]
    await sending(core, SECOND)
    batch.close()
    await sending(core, CANARY)
    assert core.sent[2:] == [SECOND.request_id, CANARY.request_id]


async def test_requests_wait_for_a_canary_that_is_not_yet_prepared() -> None:
    core = Core()
    FirstBatch(core)
    early = [sending(core, FIRST), sending(core, SECOND)]
    await settle()
    assert core.sent == []
    await asyncio.gather(sending(core, CANARY), *early)
    assert core.sent == [CANARY.request_id, FIRST.request_id, SECOND.request_id]


async def test_a_canary_that_nobody_joins_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_batch, "_PATIENCE_S", 0.01)
    core = Core()
    FirstBatch(core)
    await asyncio.wait_for(sending(core, CANARY), 5)
    assert core.sent == [CANARY.request_id]


@pytest.mark.parametrize("way", ["open", "close"])
async def test_who_waits_is_let_go(way: str) -> None:
    """Somebody wants an answer that needs no engine core; or the canary could not be asked at all."""
    core = Core()
    batch = FirstBatch(core)
    waiting = sending(core, CANARY if way == "open" else FIRST)
    await settle()
    assert core.sent == []
    getattr(batch, way)()
    await asyncio.wait_for(waiting, 5)
    assert len(core.sent) == 1
