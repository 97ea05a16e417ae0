"""Whether a failed request's engine is well. A server on a socket stands for the engine's HTTP side alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engines import probe
from engines.client import EngineClient
from engines.spec import EngineAddress


@asynccontextmanager
async def _engine(socket: Path, statuses: Mapping[str, int]) -> AsyncIterator[EngineClient]:
    """Answers each path with its status, and ends the connection where there is none."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                path = line.split()[1].decode()
                size = 0
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    size = int(value) if name.lower() == "content-length" else size
                body = await reader.readexactly(size)
                if body:
                    assert json.loads(body)["model"] == "model"
                if path not in statuses:
                    break
                writer.write(f"HTTP/1.1 {statuses[path]} X\r\ncontent-length: 2\r\n\r\n{{}}".encode())
                await writer.drain()
                if statuses[path] >= 500:  # as uvicorn does after an exception
                    break
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, socket)
    async with server, EngineClient(EngineAddress(uds=str(socket))) as client:
        yield client


@pytest.mark.parametrize(
    ("statuses", "well"),
    [
        ({"/health": 200, "/v1/completions": 200}, True),
        ({"/health": 200, "/v1/completions": 404}, True),  # it answers, and does not generate
        ({"/health": 200, "/v1/completions": 500}, False),
        ({"/health": 503, "/v1/completions": 200}, False),
        ({"/health": 200}, False),
        ({}, False),
    ],
)
async def test_an_engine_is_well_that_answers_and_works(
    tmp_path: Path, statuses: Mapping[str, int], well: bool
) -> None:
    async with _engine(tmp_path / "s", statuses) as client:
        assert await probe.is_well(client, "model", embeds=False) is well


async def test_an_engine_of_embeddings_is_asked_for_one(tmp_path: Path) -> None:
    async with _engine(tmp_path / "s", {"/health": 200, "/v1/embeddings": 200}) as client:
        assert await probe.is_well(client, "model", embeds=True)


async def test_a_connection_with_a_failure_is_not_used_again(tmp_path: Path) -> None:
    statuses = {"/fail": 500, "/health": 200, "/v1/completions": 200}
    async with _engine(tmp_path / "s", statuses) as client:
        for _ in range(3):
            assert (await client.request("GET", "/fail", timeout_s=5)).status == 500
            assert await probe.is_well(client, "model", embeds=False)
