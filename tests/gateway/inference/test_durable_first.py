"""Nothing leaves the gateway before the ledger's entry of it is durable, and nothing unmetered is served."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from metering.ledger.entries import OUTCOME
from metering.ledger.journal import Journal, Row
from tenants.errors import StorageUnavailable
from tests.gateway.app_fixture import QUESTION, Stage, stage_at

WHILE_S = 0.5
"""The stand-in answers in a sixth of that."""
BODY: dict[str, Any] = {"model": "near", "messages": [{"role": "user", "content": QUESTION}]}
Writes = Callable[[Sequence[Row]], bool]


class Disk:
    """The journal's: it takes its time, until it is let go, for the groups that ``slow`` picks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._free = threading.Event()
        self.slow: Writes = lambda rows: False
        self.reached = threading.Event()
        self.fails = False
        append = Journal.append

        def slowly(journal: Journal, rows: Sequence[Row]) -> int:
            if self.fails:
                raise StorageUnavailable("the ledger's journal or its disk is full")
            if self.slow(rows):
                self.reached.set()
                assert self._free.wait(30)
            return append(journal, rows)

        monkeypatch.setattr(Journal, "append", slowly)

    def let_go(self) -> None:
        self._free.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    created = Disk(monkeypatch)
    yield created
    created.let_go()


@pytest.fixture
async def stage(tmp_path: Path, standin: str, disk: Disk) -> AsyncIterator[Stage]:
    async with stage_at(tmp_path, standin) as opened:
        yield opened
        disk.fails = False
        disk.let_go()


def _any(rows: Sequence[Row]) -> bool:
    return True


def _settling(rows: Sequence[Row]) -> bool:
    return any(row[OUTCOME] is not None for row in rows)


async def _read(response: httpx.Response, into: list[str]) -> None:
    async for line in response.aiter_lines():
        into.append(line)


async def _ask(stage: Stage, into: list[str], **fields: Any) -> None:
    async with stage.http.stream("POST", "/v1/chat/completions", json={**BODY, **fields}) as response:
        into.append(str(response.status_code))
        await _read(response, into)


async def _meanwhile(task: "asyncio.Task[None]", disk: Disk) -> None:
    """The disk is asked, and then the request has all the time that it needs to get ahead of it."""
    assert await asyncio.to_thread(disk.reached.wait, 10)
    await asyncio.wait({task}, timeout=WHILE_S)
    assert not task.done()


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_is_sent_before_the_opening_is_durable(stage: Stage, disk: Disk, stream: bool) -> None:
    disk.slow = _any
    received: list[str] = []
    task = asyncio.create_task(_ask(stage, received, stream=stream))
    await _meanwhile(task, disk)
    assert received == []
    disk.let_go()
    await task
    assert received[0] == "200"


async def test_the_last_event_waits_for_the_settlement_and_no_other_does(stage: Stage, disk: Disk) -> None:
    disk.slow = _settling
    received: list[str] = []
    task = asyncio.create_task(_ask(stage, received, stream=True))
    await _meanwhile(task, disk)
    assert sum('"content":"' in line and '"content":""' not in line for line in received) == 7
    assert "data: [DONE]" not in received
    disk.let_go()
    await task
    assert "data: [DONE]" in received


async def test_a_plain_answer_waits_for_the_settlement(stage: Stage, disk: Disk) -> None:
    disk.slow = _settling
    received: list[str] = []
    task = asyncio.create_task(_ask(stage, received))
    await _meanwhile(task, disk)
    assert received == []
    disk.let_go()
    await task
    assert received[0] == "200"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_made_durable_is_not_served(stage: Stage, disk: Disk, stream: bool) -> None:
    assert (await stage.ask(stream=stream)).status_code == 200
    disk.fails = True
    for _ in range(2):
        refused = await stage.ask(stream=stream)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    disk.fails = False
    deadline = time.monotonic() + 10
    while (await stage.ask(stream=stream)).status_code != 200:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
