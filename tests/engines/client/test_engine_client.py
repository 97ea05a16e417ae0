"""The client of one engine, against a real server on a Unix socket and on a port."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engines.client.engine_client import EngineClient, EngineClients
from engines.errors import EngineBroken
from engines.spec import EngineAddress
from tests.engines.support import STANDIN


@pytest_asyncio.fixture
async def socket(run_dir: Path) -> AsyncIterator[Path]:
    path = run_dir / "s"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", STANDIN, path, start_new_session=True
    )
    async with EngineClient(EngineAddress(uds=str(path))) as client:
        while True:
            try:
                await client.request("GET", "/health", timeout_s=1)
                break
            except EngineBroken:
                await asyncio.sleep(0.02)
    yield path
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


@pytest_asyncio.fixture
async def client(socket: Path) -> AsyncIterator[EngineClient]:
    async with EngineClient(EngineAddress(uds=str(socket))) as client:
        yield client


async def test_only_our_own_headers_go_out(client: EngineClient) -> None:
    reply = await client.request("POST", "/echo", b'{"a": 1}', attempt_id="attempt-7", timeout_s=5)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain"
    headers, _, body = reply.body.partition(b"\n\n")
    lines = dict(line.lower().split(": ", 1) for line in headers.decode().splitlines())
    assert lines == {
        "host": "engine",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "keep-alive",
        "user-agent": "torpor",
        "content-type": "application/json",
        "content-length": "8",
        "x-request-id": "attempt-7",
    }
    assert body.strip() == b'{"a": 1}'


async def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch, socket: Path) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with EngineClient(EngineAddress(uds=str(socket))) as client:
        assert (await client.request("GET", "/health", timeout_s=5)).status == 200


async def test_chunks_arrive_as_they_are_sent_and_leaving_early_is_noticed(client: EngineClient) -> None:
    async with client.stream("/stream", b"{}", attempt_id="a") as stream:
        assert (stream.status, stream.content_type) == (200, "text/event-stream")
        began = time.monotonic()
        received: list[bytes] = []

        def few(piece: bytes) -> bool:
            received.append(piece)
            return len(received) < 5

        assert await stream.pour(few)
        assert received[0] == b"data: 0\n\n"
        assert time.monotonic() - began < 1
    for _ in range(100):
        if (await client.request("GET", "/gone", timeout_s=5)).body == b"yes":
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the server was not told")


async def test_a_cancelled_plain_call_closes_its_connection(client: EngineClient) -> None:
    task = asyncio.create_task(client.request("POST", "/hang", b"", timeout_s=50))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await client.request("GET", "/health", timeout_s=5)).status == 200


async def test_a_dead_engine_is_broken_in_every_way_of_asking(client: EngineClient) -> None:
    with pytest.raises(EngineBroken, match="within"):
        await client.request("POST", "/hang", b"", timeout_s=0.1)
    async with client.stream("/stream", b"{}", attempt_id="a") as stream:
        assert await stream.pour(lambda _: False)
        with pytest.raises(EngineBroken):
            await client.request("POST", "/die", b"", timeout_s=5)
        with pytest.raises(EngineBroken):
            await stream.read()
    with pytest.raises(EngineBroken):
        await client.request("GET", "/health", timeout_s=5)
    with pytest.raises(EngineBroken):
        async with client.stream("/stream", b"{}", attempt_id="a"):
            pass
    assert await client.counts("a") is None


async def test_no_engine_at_all() -> None:
    async with EngineClient(EngineAddress(uds="/nonexistent/s")) as client:
        with pytest.raises(EngineBroken):
            await client.request("GET", "/health", timeout_s=5)
    async with EngineClient(EngineAddress(url="http://127.0.0.1:1/v1")) as client:
        with pytest.raises(EngineBroken):
            await client.request("GET", "/v1/models", timeout_s=5)
        assert await client.counts("a") is None


async def test_a_hundred_calls_at_once(client: EngineClient) -> None:
    calls = (client.request("POST", "/echo", b"%d" % n, timeout_s=20) for n in range(100))
    replies = await asyncio.gather(*calls)
    assert [int(reply.body.rsplit(b"\n", 1)[1]) for reply in replies] == list(range(100))


async def test_an_idle_connection_that_the_engine_closes_fails_no_request() -> None:
    """uvicorn closes after five seconds; this server does after much less, and says nothing beforehand."""
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await reader.readuntil(b"\r\n\r\n")
        served += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, EngineClient(EngineAddress(url=f"http://127.0.0.1:{port}/v1/")) as client:
        for _ in range(5):
            assert (await client.request("GET", "/v1/models", timeout_s=5)).body == b"ok"
            await asyncio.sleep(0.1)
    assert served == 5


async def test_a_remote_engines_key_is_sent_and_its_v1_is_not_doubled() -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address = EngineAddress(url=f"http://127.0.0.1:{port}/prefix/v1", api_key="sk-x")
    async with server, EngineClient(address) as client:
        await client.request("GET", "/v1/models", timeout_s=5)
    assert seen[0].startswith(b"GET /prefix/v1/models HTTP/1.1\r\n")
    assert b"authorization: Bearer sk-x" in seen[0].replace(b"Authorization", b"authorization")


async def test_clients_are_kept_by_address_until_their_engine_is_gone(socket: Path) -> None:
    clients = EngineClients()
    client = clients.get(EngineAddress(uds=str(socket)))
    assert clients.get(EngineAddress(uds=str(socket))) is client
    await client.request("GET", "/health", timeout_s=5)
    await asyncio.to_thread(socket.unlink)
    clients.get(EngineAddress(url="http://127.0.0.1:1"))
    assert clients.get(EngineAddress(uds=str(socket))) is not client
    clients.close()
