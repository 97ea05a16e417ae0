"""Requests wait for their turn at a model: over real HTTP, at an engine that answers when it is told to."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway.config.sections import LimitsConfig, QueueDiscipline
from tests.gateway.app_fixture import Stage, stage_at
from tests.gateway.serving import serving


@dataclass
class Engine:
    """A stand-in for a `url` engine: it holds every request until `let_go`, and remembers their order."""

    texts: list[str] = field(default_factory=list)
    _held: list[asyncio.Event] = field(default_factory=list)
    _ended: bool = False

    async def answer(self, request: Request) -> JSONResponse:
        body = await request.json()
        self.texts.append(body["messages"][-1]["content"])
        let_go = asyncio.Event()
        self._held.append(let_go)
        if not self._ended:
            await let_go.wait()
        message = {"role": "assistant", "content": "yes"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 37, "completion_tokens": 1, "total_tokens": 38}
        head: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1}
        return JSONResponse({**head, "model": body["model"], "choices": choices, "usage": usage})

    def let_go(self) -> None:
        """The request that has been held for longest is answered."""
        self._held.pop(0).set()

    def end(self) -> None:
        """No request is held from now on."""
        self._ended = True
        while self._held:
            self.let_go()

    async def has(self, *texts: str) -> bool:
        """Whether it is given these, in this order, and no more."""
        async with asyncio.timeout(10):
            while len(self.texts) < len(texts):
                await asyncio.sleep(0.01)
        assert self.texts == list(texts)
        return True


@asynccontextmanager
async def crowded(
    folder: Path, limits: LimitsConfig | None = None, **near: object
) -> AsyncIterator[tuple[Stage, Engine]]:
    engine = Engine()
    app = Starlette(routes=[Route("/v1/chat/completions", engine.answer, methods=["POST"])])
    async with (
        serving(app) as port,
        stage_at(
            folder, f"http://127.0.0.1:{port}", limits=limits, near={"max_concurrent": 1, **near}
        ) as stage,
    ):
        try:
            yield stage, engine
        finally:
            engine.end()


async def waiting(stage: Stage, number: int) -> None:
    """Until so many requests wait."""
    async with asyncio.timeout(10):
        while stage.services.queues.waiting("near") != number:
            await asyncio.sleep(0.01)


async def ask(http: httpx.AsyncClient, text: str, **fields: object) -> httpx.Response:
    body = {"model": "near", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}
    return await http.post("/v1/chat/completions", json=body)


def metrics(stage: Stage) -> Counter[str]:
    """By name, summed over the labels but the model."""
    result: Counter[str] = Counter()
    for source in stage.services.metric_sources():
        for family in source.metrics():
            for sample in family.samples:
                if sample.labels.get("model", "near") == "near":
                    result[sample.name] += int(sample.value)
    return result


async def test_another_project_is_served_before_the_rest_of_a_flood(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (stage, engine), stage.client(stage.other.key) as other:
        request = [asyncio.create_task(ask(stage.http, "flood 0"))]
        assert await engine.has("flood 0")
        for number in range(1, 4):
            request.append(asyncio.create_task(ask(stage.http, f"flood {number}")))
            await waiting(stage, number)
        request.append(asyncio.create_task(ask(other, "other")))
        await waiting(stage, 4)
        assert metrics(stage)["torpor_queue_waiting"] == 4
        assert metrics(stage)["torpor_queue_running"] == 1
        for _ in range(2):
            engine.let_go()
            await asyncio.sleep(0.05)
        assert await engine.has("flood 0", "other", "flood 1")
        for _ in range(3):
            engine.let_go()
            await asyncio.sleep(0.05)
        assert [answer.status_code for answer in await asyncio.gather(*request)] == [200] * 5


async def test_a_slot_that_is_kept_back_is_for_who_has_none(tmp_path: Path) -> None:
    two = crowded(tmp_path, max_concurrent=2, reserved_slots=1)
    async with two as (stage, engine), stage.client(stage.other.key) as other:
        request = [asyncio.create_task(ask(stage.http, "flood 0"))]
        assert await engine.has("flood 0")
        request.append(asyncio.create_task(ask(stage.http, "flood 1")))
        await waiting(stage, 1)
        request.append(asyncio.create_task(ask(other, "other")))
        assert await engine.has("flood 0", "other")
        engine.end()
        assert {answer.status_code for answer in await asyncio.gather(*request)} == {200}


async def test_first_come_first_served_where_it_is_configured(tmp_path: Path) -> None:
    plain = crowded(tmp_path, queue_discipline=QueueDiscipline.FIFO)
    async with plain as (stage, engine), stage.client(stage.other.key) as other:
        request = [asyncio.create_task(ask(stage.http, "flood 0"))]
        assert await engine.has("flood 0")
        for text, http in (("flood 1", stage.http), ("flood 2", stage.http), ("other", other)):
            request.append(asyncio.create_task(ask(http, text)))
            await waiting(stage, len(request) - 1)
        for _ in range(3):
            engine.let_go()
            await asyncio.sleep(0.05)
        assert await engine.has("flood 0", "flood 1", "flood 2", "other")
        engine.let_go()
        assert {answer.status_code for answer in await asyncio.gather(*request)} == {200}


async def test_a_batch_waits_for_those_who_do_not_want_to(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (stage, engine):
        request = [asyncio.create_task(ask(stage.http, "first"))]
        assert await engine.has("first")
        for text, tier in (("batch", "flex"), ("usual", "default"), ("urgent", "priority")):
            request.append(asyncio.create_task(ask(stage.http, text, service_tier=tier)))
            await waiting(stage, len(request) - 1)
        for _ in range(3):
            engine.let_go()
            await asyncio.sleep(0.05)
        assert await engine.has("first", "urgent", "usual", "batch")
        engine.let_go()
        assert {answer.status_code for answer in await asyncio.gather(*request)} == {200}


async def test_one_more_than_may_wait_is_refused_and_consumes_nothing(tmp_path: Path) -> None:
    async with crowded(tmp_path, max_queued=1) as (stage, engine):
        await stage.limit(max_requests_per_1_minute=2)
        first = asyncio.create_task(ask(stage.http, "first"))
        assert await engine.has("first")
        second = asyncio.create_task(ask(stage.http, "second"))
        await waiting(stage, 1)
        await stage.limit(max_requests_per_1_minute=3)
        for _ in range(3):
            refused = await ask(stage.http, "third")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
        assert metrics(stage)["torpor_admission_refusals_total"] == 3
        engine.let_go()
        assert await engine.has("first", "second")
        engine.let_go()
        assert [(await first).status_code, (await second).status_code] == [200, 200]
        engine._held.clear()
        third = asyncio.create_task(ask(stage.http, "third"))
        assert await engine.has("first", "second", "third")
        engine.let_go()
        assert (await third).status_code == 200


async def test_a_client_that_leaves_is_taken_out_of_the_queue(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (stage, engine):
        first = asyncio.create_task(ask(stage.http, "first"))
        assert await engine.has("first")
        async with stage.client(stage.tenant.key) as leaving:
            request = asyncio.create_task(ask(leaving, "gone"))
            await waiting(stage, 1)
            request.cancel()
        await waiting(stage, 0)
        engine.let_go()
        assert (await first).status_code == 200
        last = asyncio.create_task(ask(stage.http, "last"))
        assert await engine.has("first", "last")
        engine.let_go()
        assert (await last).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_who_waits_for_too_long_is_told(tmp_path: Path, stream: bool) -> None:
    async with crowded(tmp_path, queue_timeout_s=0.2) as (stage, engine):
        first = asyncio.create_task(ask(stage.http, "first"))
        assert await engine.has("first")
        late = await ask(stage.http, "late", stream=stream)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "queue_timeout")
        assert int(late.headers["retry-after"]) >= 1
        assert stage.services.queues.waiting("near") == 0
        engine.let_go()
        assert (await first).status_code == 200
