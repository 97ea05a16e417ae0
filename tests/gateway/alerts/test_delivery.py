"""Alerts that fire, and those who are told: over real HTTP, through failures and restarts."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.alerts.service import open_alerts
from gateway.config.alerts import AlertsConfig
from tenants.alerts.outbox import Outbox
from tenants.errors import StorageUnavailable
from tenants.limits.budgets import CENT, Budgets, Crossing
from tests.engines.support import eventually
from tests.gateway.alerts_fixture import (
    COST_CENTS,
    QUICK,
    alert_stage,
    hook,
    make_alert,
    outbox_rows,
    outbox_when_over,
)
from tests.gateway.app_fixture import Stage
from tests.gateway.receivers import receiving


@pytest.fixture
async def stage(tmp_path: Path, standin: str) -> AsyncIterator[Stage]:
    async with alert_stage(tmp_path, standin) as opened:
        yield opened


async def test_a_webhook_is_signed_and_told_once_although_it_fails_at_first(stage: Stage) -> None:
    with receiving(500, 503, 302) as receiver:
        _, created = await make_alert(stage, COST_CENTS, hook(receiver))
        assert (await stage.ask(max_tokens=20)).status_code == 200
        (row,) = await outbox_when_over(stage, 1)
        for _ in range(3):
            assert (await stage.ask(max_tokens=20)).status_code == 200
        await asyncio.sleep(0.1)
    assert (row["attempts"], row["error"]) == (4, None)
    (family,) = stage.services.alerts.deliveries.metrics()
    counts = {(item.labels["channel"], item.labels["outcome"]): item.value for item in family.samples}
    assert counts == {("webhook", "failed"): 3, ("webhook", "delivered"): 1}
    assert row["delivered_ms"] is not None
    assert len(receiver.arrivals) == 4
    assert {arrival.headers["webhook-id"] for arrival in receiver.arrivals} == {row["id"]}
    assert all(arrival.verified(created["notification_channel"]["secret"]) for arrival in receiver.arrivals)
    assert len({arrival.body for arrival in receiver.arrivals}) == 1
    waits = [b.at - a.at for a, b in zip(receiver.arrivals, receiver.arrivals[1:], strict=False)]
    assert all(wait >= 0.5 * 0.05 * 3**number for number, wait in enumerate(waits)), waits
    event = json.loads(receiver.arrivals[0].body)
    assert event["type"] == "spend_alert.triggered"
    assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None
    assert event["data"] == {
        "alert_id": created["id"],
        "organization_id": stage.tenant.organization_id,
        "project_id": stage.tenant.project_id,
        "threshold_amount": COST_CENTS,
        "spent_amount": COST_CENTS,
        "currency": "USD",
        "interval": "month",
        "month": datetime.now(UTC).strftime("%Y-%m"),
    }


async def test_each_threshold_once_a_month(stage: Stage) -> None:
    with receiving() as receiver:
        path, created = await make_alert(stage, COST_CENTS, hook(receiver), of="organization")
        await make_alert(stage, 100 * COST_CENTS, hook(receiver))
        assert (await stage.ask(max_tokens=20)).status_code == 200
        await outbox_when_over(stage, 1)
        body = {**created, "notification_channel": hook(receiver)}
        del body["id"], body["object"]
        # The same threshold again is told already; another one that the spend has reached is told at once.
        assert (await stage.admin.post(path, json=body)).status_code == 200
        assert (await stage.admin.post(path, json={**body, "threshold_amount": 4})).status_code == 200
        rows = await outbox_when_over(stage, 2)
        assert sorted(row["threshold_cents"] for row in rows) == [4, COST_CENTS]
        # The next month begins without any alert.
        budgets = stage.control.budgets
        month_start = datetime.fromtimestamp(budgets.month_start(), UTC)
        following = (month_start + timedelta(days=40)).timestamp()
        budgets.clock = lambda: following
        assert (await stage.ask(max_tokens=20)).status_code == 200
        assert (await stage.ask(max_tokens=20)).status_code == 200
        rows = await outbox_when_over(stage, 3)
        await asyncio.sleep(0.1)
        assert [row["month"] for row in rows] == [int(month_start.timestamp())] * 2 + [budgets.month_start()]
    assert len(receiver.arrivals) == 3


async def test_two_gateways_tell_once(stage: Stage) -> None:
    """Both see the spend pass the threshold at the same time."""
    data_pepper = b"p" * 32
    with receiving() as receiver:
        for cents in range(1, 9):
            await make_alert(stage, cents, hook(receiver))
        subject = stage.tenant.project_id
        budgets = [Budgets() for _ in range(3)]
        gateways = [
            open_alerts(stage.services.database, QUICK, data_pepper, {}, each, None) for each in budgets
        ]
        async with gateways[0], gateways[1], gateways[2]:
            assert await eventually(lambda: all(each._thresholds for each in budgets))
            for each in budgets:
                assert each.on_crossing is not None
                each.on_crossing(Crossing(subject, 8, 8 * CENT))
            rows = await outbox_when_over(stage, 8)
            await asyncio.sleep(0.1)
    assert len(rows) == 8
    assert [row["attempts"] for row in rows] == [1] * 8
    assert sorted(arrival.headers["webhook-id"] for arrival in receiver.arrivals) == sorted(
        row["id"] for row in rows
    )


async def test_what_another_gateway_has_settled_counts(stage: Stage) -> None:
    """The ledger knows; this gateway's own budgets do not."""
    with receiving() as receiver:
        await make_alert(stage, 3 * COST_CENTS, hook(receiver))
        unseen = Budgets()
        mine, stage.control.admissions._budgets = stage.control.admissions._budgets, unseen
        for _ in range(3):
            assert (await stage.ask(max_tokens=20)).status_code == 200
        assert mine.spent(stage.tenant.project_id) == 0
        assert not await outbox_rows(stage)
        assert await stage.services.ledger.applied()
        stage.services.alerts.watch(mine, stage.services.alerts._read)
        (row,) = await outbox_when_over(stage, 1)
        assert (row["threshold_cents"], row["spent_cents"]) == (3 * COST_CENTS, 15)


async def test_an_attempt_that_was_cut_off_is_made_again(stage: Stage) -> None:
    """The gateway ended while it waited for the receiver: what it had taken is due again after a while."""
    with receiving() as receiver:
        await make_alert(stage, 1, hook(receiver))
        outbox = Outbox(stage.services.tenants.storage)
        assert await outbox.fire(stage.tenant.project_id, 0, 1, 1000) == 1
        assert await outbox.fire(stage.tenant.project_id, 0, 1, 1001) == 0
        (taken,) = await outbox.take(1000, 9000, 8)
        assert (taken.attempts, taken.subject_name) == (1, "web")
        assert await outbox.take(8999, 20000, 8) == []
        assert await outbox.next_attempt_ms() == 9000
        (again,) = await outbox.take(9000, 20000, 8)
        assert (again.id, again.attempts) == (taken.id, 2)
        await outbox.settle(again.id, 9001, None, None)
        assert await outbox.next_attempt_ms() is None
        assert await outbox.take(10**15, 10**16, 8) == []


@pytest.mark.parametrize("status", [410, 500])
async def test_in_the_end_it_is_given_up(tmp_path: Path, standin: str, status: int) -> None:
    config = AlertsConfig(allow_private_addresses=True, retry_base_s=0.01, timeout_s=2.0, max_attempts=3)
    async with alert_stage(tmp_path, standin, config) as stage:
        with receiving(*[status] * 9) as receiver:
            await make_alert(stage, 1, hook(receiver))
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await outbox_when_over(stage, 1)
            await asyncio.sleep(0.1)
    assert len(receiver.arrivals) == row["attempts"] == (1 if status == 410 else 3)
    assert (row["delivered_ms"], row["error"]) == (None, f"the receiver answered {status}")


async def test_a_database_that_was_away_loses_no_alert(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fire, failures = Outbox.fire, 0

    async def failing(self: Outbox, *arguments: Any) -> int:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise StorageUnavailable("the database is unavailable")
        return await fire(self, *arguments)

    with receiving() as receiver:
        await make_alert(stage, COST_CENTS, hook(receiver))
        stage.services.alerts._loop._after_failure_s = 0.02
        monkeypatch.setattr(Outbox, "fire", failing)
        assert (await stage.ask(max_tokens=20)).status_code == 200
        await outbox_when_over(stage, 1)
    assert failures == 3
    answer = [record.message for record in caplog.records if record.name == "torpor.alerts"]
    assert answer[:2] == ["spend alerts wait: the database is unavailable", "spend alerts go on"]


async def test_a_deleted_alert_tells_nothing_more(stage: Stage) -> None:
    with receiving(*[500] * 99) as receiver:
        path, _ = await make_alert(stage, 1, hook(receiver))
        assert (await stage.ask(max_tokens=20)).status_code == 200
        assert await eventually(lambda: bool(receiver.arrivals))
        assert (await stage.admin.delete(path)).status_code == 200
        (row,) = await outbox_when_over(stage, 1)
    assert (row["delivered_ms"], row["error"]) == (None, "the alert was deleted")


async def test_a_name_of_a_private_address_is_refused_when_it_is_told(tmp_path: Path, standin: str) -> None:
    """``127.1`` is an address only to the resolver, like a name whose owner changes it."""
    config = AlertsConfig(retry_base_s=0.01, timeout_s=2.0, max_attempts=2)
    async with alert_stage(tmp_path, standin, config) as stage:
        with receiving() as receiver:
            await make_alert(stage, 1, {"type": "webhook", "url": f"http://127.1:{receiver.port}/hook"})
            assert (await stage.ask(max_tokens=20)).status_code == 200
            (row,) = await outbox_when_over(stage, 1)
    assert not receiver.arrivals
    assert (row["attempts"], row["delivered_ms"]) == (2, None)
    assert row["error"] == "the receiver has a private address, which [alerts] does not allow"


async def test_a_receiver_that_never_answers_holds_nobody_up(tmp_path: Path, standin: str) -> None:
    async def mute(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    ended = asyncio.Event()
    config = AlertsConfig(allow_private_addresses=True, retry_base_s=60.0, timeout_s=0.2)
    async with (
        await asyncio.start_server(mute, "127.0.0.1", 0) as silent,
        alert_stage(tmp_path, standin, config) as stage,
    ):
        port = silent.sockets[0].getsockname()[1]
        with receiving() as receiver:
            await make_alert(stage, 1, {"type": "webhook", "url": f"http://127.0.0.1:{port}/"})
            await make_alert(stage, 2, hook(receiver))
            assert (await stage.ask(max_tokens=20)).status_code == 200
            await outbox_when_over(stage, 1)
            assert len(receiver.arrivals) == 1
            await asyncio.sleep(0.3)
            answer = {row["threshold_cents"]: row["error"] for row in await outbox_rows(stage)}
        ended.set()
    assert answer == {1: "no answer within 0.2 s", 2: None}
