"""Lookups of names and mails that hang: bounded, apart from the default pool, and each tenant's own."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.alerts.mail import MailChannel
from gateway.alerts.messages import DeliveryFailed
from gateway.alerts.threads import BoundedThreads
from gateway.config.alerts import AlertsConfig
from tenants.alerts.outbox import Notification
from tenants.alerts.spend_alerts import SpendAlert
from tests.engines.support import eventually
from tests.gateway.alerts_fixture import alert_stage, make_alert, outbox_rows
from tests.gateway.receivers import receiving


class SilentServers:
    """Name servers that never answer, for the names that end in ``.silent``; counts who waits for them."""

    def __init__(self) -> None:
        self.waiting = 0
        self.most = 0
        self.answer = threading.Event()
        self._lock = threading.Lock()
        self._getaddrinfo = socket.getaddrinfo

    def getaddrinfo(self, host: Any, *arguments: Any, **options: Any) -> Any:
        """As the socket module's."""
        name = host.decode() if isinstance(host, bytes) else str(host)
        if not name.endswith(".silent"):
            return self._getaddrinfo(host, *arguments, **options)
        with self._lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        self.answer.wait(30)
        with self._lock:
            self.waiting -= 1
        raise socket.gaierror("no answer")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentServers]:
    servers = SilentServers()
    monkeypatch.setattr(socket, "getaddrinfo", servers.getaddrinfo)
    yield servers
    servers.answer.set()


async def _default_pool_is_free(threads: int = 4) -> bool:
    began = time.monotonic()
    await asyncio.gather(*[asyncio.to_thread(int) for _ in range(threads)])
    return time.monotonic() - began < 5


async def test_silent_name_servers_stall_nothing_and_nobody_else(
    tmp_path: Path, standin: str, silent: SilentServers
) -> None:
    quick = AlertsConfig(allow_private_addresses=True, retry_base_s=0.1, timeout_s=1.0)
    async with alert_stage(tmp_path, standin, quick) as stage:
        for number in range(1, 41):
            await make_alert(stage, 5, {"type": "webhook", "url": f"http://host-{number}.silent/"})
        assert (await stage.ask(max_tokens=20)).status_code == 200
        assert await eventually(lambda: silent.waiting >= 2, 10.0)
        assert await _default_pool_is_free()
        with receiving() as receiver:
            # Of another organization, behind forty that hang.
            async with stage.client(stage.other.admin_key) as admin:
                body = {
                    "threshold_amount": 5,
                    "currency": "USD",
                    "interval": "month",
                    "notification_channel": {"type": "webhook", "url": receiver.url},
                }
                path = f"/v1/organization/projects/{stage.other.project_id}/spend_alerts"
                assert (await admin.post(path, json=body)).is_success
            async with stage.client(stage.other.key) as other:
                chat = {"model": "near", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
                assert (await other.post("/v1/chat/completions", json=chat)).status_code == 200
            assert await eventually(lambda: len(receiver.arrivals) == 1, 20.0)
            assert (await stage.ask(max_tokens=20)).status_code == 200
        assert silent.most <= 2, "lookups of one organization"
        rows = await outbox_rows(stage)
        assert sum(row["delivered_ms"] is not None for row in rows) == 1
        assert all(row["error"] for row in rows if row["attempts"] > 1 and row["delivered_ms"] is None)
    silent.answer.set()
    assert await eventually(lambda: silent.waiting == 0, 10.0)


async def test_a_silent_mail_server_stalls_nothing(silent: SilentServers) -> None:
    config = AlertsConfig(smtp_host="mail.silent", smtp_from="torpor@example.com", timeout_s=0.2)
    channel = MailChannel(config, None)
    alert = SpendAlert("alert_1", "org-1", None, 5, {"type": "email", "recipients": ["a@example.com"]})
    notification = Notification("msg_1", alert, "acme", 0, 5, 5, 0, 1)
    sending = [asyncio.create_task(channel.deliver(notification)) for _ in range(30)]
    assert await eventually(lambda: silent.waiting == 8, 10.0)
    assert await _default_pool_is_free()
    silent.answer.set()
    done = await asyncio.gather(*sending, return_exceptions=True)
    assert {type(each) for each in done} == {DeliveryFailed}
    assert silent.most == 8


async def test_threads_are_bounded_in_all_and_by_owner_and_freed_by_their_end() -> None:
    threads = BoundedThreads("test", most=3, most_of_one=2)
    hold, running = threading.Event(), list[str]()

    def call(owner: str) -> str:
        running.append(owner)
        assert hold.wait(30)
        return owner

    calls = [asyncio.create_task(threads.run(owner, partial(call, owner))) for owner in "aaaabbc"]
    assert await eventually(lambda: len(running) == 3, 10.0)
    assert sorted(running) == ["a", "a", "b"]
    # A caller that leaves frees nothing while its thread runs, and one that waits leaves the line.
    calls[0].cancel()
    calls[3].cancel()
    await asyncio.sleep(0.05)
    assert (threads.running, len(running)) == (3, 3)
    hold.set()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [each for each in done if isinstance(each, str)] == ["a", "a", "b", "b", "c"]
    assert await eventually(lambda: threads.running == 0, 10.0)
    assert await threads.run("a", lambda: "again") == "again"


async def test_what_a_call_raises_is_raised_and_frees_its_place() -> None:
    threads = BoundedThreads("test", most=1, most_of_one=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await threads.run("a", lambda: 1 // 0)
