"""A server on a socket that stands for the HTTP side of an engine alone: a status for each path."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from engines.client.engine_client import EngineClient
from engines.spec import EngineAddress


@asynccontextmanager
async def canned_engine(socket: Path, statuses: Mapping[str, int]) -> AsyncIterator[EngineClient]:
    """Answers each path with its status, and ends the connection if it has none."""

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
