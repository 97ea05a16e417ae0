"""Clients that leave at the worst moment, over real connections."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from gateway.config.sections import LimitsConfig
from gateway.http.connection import connection_of
from gateway.http.context import RequestContext, RequestRecord, record_of
from gateway.http.json_body import read_json
from gateway.inference.exchange import Exchange, Plan, RelayContext
from tests.gateway.serving import serving

_REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
Handle = Callable[[Scope, Receive, Send], Awaitable[None]]


async def _leaving(handle: Handle, *, at_once: bool = True) -> RequestRecord:
    """The record of a request whose client leaves before ``handle`` is called, or while it runs."""
    arrived, ended = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        link = connection_of(scope)
        assert link is not None
        arrived.set()
        try:
            while at_once and not link.gone:
                await asyncio.sleep(0.001)
            await asyncio.wait_for(handle(scope, receive, send), 2)
        except Exception as error:  # noqa: BLE001 - it is told to the test
            ended.set_exception(error)
        else:
            ended.set_result(record_of(scope))

    async with serving(RequestContext(app)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_REQUEST)
        await arrived.wait()
        writer.close()
        return cast(RequestRecord, await asyncio.wait_for(ended, 5))


async def test_a_client_that_leaves_before_its_body_is_read_is_no_error_of_the_gateways() -> None:
    async def read(scope: Scope, receive: Receive, _: Send) -> None:
        await read_json(Request(scope, receive), LimitsConfig(), 1.0, dict)

    with pytest.raises(ClientDisconnect):
        await _leaving(read)


class _Endless(Exchange):
    """The engine's work never ends by itself."""

    async def _attempt(self, send: Send) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_work_ends_with_its_client(at_once: bool) -> None:
    nobody: Any = None
    relay = RelayContext(nobody, nobody, nobody, nobody, running=set(), send_timeout_s=1.0)

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        plan = Plan(model_id="m", path="/", body=b"", wake_timeout_s=1.0)
        await _Endless(relay, plan, record_of(scope))(scope, receive, send)

    record = await _leaving(work, at_once=at_once)
    assert record.client_gone
    assert not relay.running
