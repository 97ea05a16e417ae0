"""An engine cannot lead the host to another engine's socket."""

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from engines import unix_socket
from engines.client.connection_pool import HttpPool
from engines.errors import EngineBroken
from engines.lifecycle.control_calls import call

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of another engine, which answers whatever comes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    path = tmp_path / "other"
    async with await asyncio.start_unix_server(answer, str(path)):
        yield path


async def test_a_control_call_follows_no_link(other: Path, tmp_path: Path) -> None:
    assert (await call(other, "GET", "/health", timeout_s=5))[0] == 200
    link = tmp_path / "s"
    link.symlink_to(other)
    with pytest.raises(EngineBroken):
        await call(link, "GET", "/health", timeout_s=5)


async def test_a_request_follows_no_link(other: Path, tmp_path: Path) -> None:
    link = tmp_path / "s"
    link.symlink_to(other)
    connected = await HttpPool("http://engine", str(other), {})._connect()
    connected.close()
    with pytest.raises(EngineBroken, match="replaced by a link"):
        await HttpPool("http://engine", str(link), {})._connect()


async def test_another_file_in_its_place_is_refused_and_no_descriptor_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a socket")
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("file", "pipe", "missing"):
        with pytest.raises(OSError):  # noqa: PT011 - ENOTSOCK or ENOENT
            await unix_socket.connect(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as deserted:
        deserted.bind(str(tmp_path / "deserted"))
    with pytest.raises(ConnectionRefusedError):
        await unix_socket.connect(tmp_path / "deserted")
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_connects_under_the_event_loop_that_serves(tmp_path: Path) -> None:
    async def connect() -> bytes:
        path = tmp_path / uuid.uuid4().hex
        server = await asyncio.start_unix_server(lambda _, writer: writer.close(), str(path))
        async with server:
            reader, writer = await asyncio.open_unix_connection(sock=await unix_socket.connect(path))
            data = await reader.read(-1)
            writer.close()
            return data

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(connect()) == b""
