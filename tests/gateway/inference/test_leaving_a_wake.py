"""A client that leaves while the engine of its request is being woken."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from tests.gateway.app_fixture import Stage
from tests.gateway.raw_http import head


@asynccontextmanager
async def _endless_wake(*_: Any, **__: Any) -> AsyncIterator[None]:
    """Stands for ``EngineHost.acquire`` of an engine whose wake does not end."""
    await asyncio.Event().wait()
    yield


async def _outcomes(stage: Stage) -> list[str | None]:
    async with stage.services.database.connect() as connection:
        rows = await connection.execute(text("SELECT outcome FROM ledger_entries"))
        return [row.outcome for row in rows]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [100, 65_536, 400_000])
async def test_a_client_that_leaves_while_its_engine_wakes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, stream: bool, size: int
) -> None:
    monkeypatch.setattr(stage.services.host, "acquire", _endless_wake)
    body = {"model": "far", "messages": [{"role": "user", "content": "x" * size}], "stream": stream}
    encoded = json.dumps(body).encode()
    lines = [
        "Host: gateway",
        f"Authorization: Bearer {stage.tenant.key}",
        "Content-Type: application/json",
        f"Content-Length: {len(encoded)}",
    ]
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
    writer.write(head("POST", "/v1/chat/completions", *lines) + encoded)
    if stream:  # it is opened while the engine is awaited
        assert b"200 OK" in await asyncio.wait_for(reader.readline(), 5)
    async with asyncio.timeout(5):
        while not stage.services.running:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert stage.services.running
    writer.close()
    async with asyncio.timeout(1):
        while stage.services.running:
            await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        while await _outcomes(stage) != ["aborted"]:
            await asyncio.sleep(0.02)
