"""A host whose clock is wrong, and is put right: what moves with it comes back with it.

The gateway is a process of its own, as an operator starts it; its wall clock is off by what a file says.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.config.prices import PriceConfig
from gateway.inference.admission import open_admission
from gateway.inference.monthly_spend import MonthlySpend
from tenants.errors import StorageUnavailable
from tenants.limits.budgets import CENT, Budgets, month_of
from tenants.tables import alert_notifications
from tests.gateway.alerts_fixture import (
    COST_CENTS,
    alert_stage,
    hook,
    make_alert,
    outbox_rows,
    outbox_when_over,
)
from tests.gateway.app_fixture import Stage, stage_at
from tests.gateway.receivers import receiving
from tests.process import QUESTION, REPOSITORY, Gateway, free_port

YEAR_S = 366 * 86_400
PRICES = [PriceConfig(model="near", input=Decimal(1000), output=Decimal(2000))]
COST = 37 * CENT // 10 + 7 * CENT // 5
"""Of the stand-in's answer: 5.1 cents."""

_WRONG_CLOCK = """
import os, time

_time, _time_ns = time.time, time.time_ns

def _off():
    with open(os.environ["CLOCK_OFF_BY"]) as file:
        return int(file.read() or 0)

time.time = lambda: _time() + _off()
time.time_ns = lambda: _time_ns() + _off() * 10**9
"""

CONFIGURATION = """
[server]
port = {port}
[[models]]
id = "near"
url = "{standin}/v1"
[[prices]]
model = "near"
input = "1000"
output = "2000"
[alerts]
allow_private_addresses = true
retry_base_s = 0.2
"""


class Host(Gateway):
    """A gateway whose wall clock is off by ``seconds``."""

    def off_by(self, seconds: int) -> None:
        (self.folder / "off").write_text(str(seconds))

    def chat(self) -> httpx.Response:
        with self.http() as http:
            body = {"model": "near", "messages": QUESTION, "max_tokens": 20}
            return http.post("/v1/chat/completions", json=body)

    def limit(self, cents: int) -> None:
        body = {"threshold_amount": cents, "currency": "USD", "interval": "month"}
        with self.http(self.admin_key) as http:
            assert http.post("/v1/organization/spend_limit", json=body).is_success


@pytest.fixture
def host(tmp_path: Path, standin: str) -> Iterator[Host]:
    port = free_port()
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(_WRONG_CLOCK)
    (tmp_path / "torpor.toml").write_text(CONFIGURATION.format(port=port, standin=standin))
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{tmp_path / 'clock'}:{REPOSITORY}",
        "CLOCK_OFF_BY": str(tmp_path / "off"),
    }
    host = Host(tmp_path, port, environment)
    host.off_by(0)
    host.torpor("setup")
    lines = (tmp_path / ".torpor/credentials.env").read_text().splitlines()
    host.keys = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    try:
        yield host
    finally:
        if host.process is not None and host.process.poll() is None:
            host.end()


def test_a_host_that_booted_a_year_ahead_recovers_by_itself(host: Host) -> None:
    """Budgets, rate limits, alerts, usage and last use, without a restart."""
    host.off_by(YEAR_S)
    host.start()
    host.limit(8)
    with receiving(500, 500) as receiver:
        body = {
            "threshold_amount": 5,
            "currency": "USD",
            "interval": "month",
            "notification_channel": {"type": "webhook", "url": receiver.url},
        }
        with host.http(host.admin_key) as http:
            assert http.post("/v1/organization/spend_alerts", json=body).is_success
        assert host.chat().status_code == 200
        receiver.wait(1)
        host.off_by(0)
        # The month is this one, nothing is spent in it, and its alert is still to come.
        assert [host.chat().status_code for _ in range(3)] == [200, 429, 429]
        receiver.wait(4)
        answer = [arrival.body for arrival in receiver.arrivals]
        assert {each.count(f'"month":"{_month(0)}"'.encode()) for each in answer} == {0, 1}
    began = int(time.time()) - 600
    with host.http(host.admin_key) as http:
        usage = http.get("/v1/organization/usage/completions", params={"start_time": began}).json()
        keys = http.get("/v1/organization/projects").json()
        project = keys["data"][0]["id"]
    assert sum(r["num_model_requests"] for each in usage["data"] for r in each["results"]) == 1
    host.end()
    with sqlite3.connect(host.folder / ".torpor/torpor.db") as database:
        ((used_ms,),) = database.execute(
            "SELECT last_used_ms FROM api_keys WHERE project_id = ? AND last_used_ms IS NOT NULL", (project,)
        ).fetchall()
    assert abs(used_ms / 1000 - time.time()) < 120
    # Later months turn, and the wrong year has kept what was entered for it.
    host.off_by(_until_next_month())
    host.start()
    assert [host.chat().status_code for _ in range(2)] == [200, 429]
    host.off_by(YEAR_S)
    assert host.chat().status_code == 429


def test_rate_limits_do_not_ask_the_wall_clock(host: Host) -> None:
    """What was charged a year ahead is not owed for a year, and a year does not pass by itself."""
    with (host.folder / "torpor.toml").open("a") as config:
        config.write("[limits]\nrequests_per_minute = 3\n")
    host.off_by(YEAR_S)
    host.start()
    statuses = []
    for seconds in (YEAR_S, YEAR_S, 0, 2 * YEAR_S, 0):
        host.off_by(seconds)
        answer = host.chat()
        statuses.append(answer.status_code)
    assert statuses == [200, 200, 200, 429, 429]
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= float(answer.headers["retry-after"]) <= 20
    host.off_by(-YEAR_S)
    assert host.chat().status_code == 429


def test_the_end_of_the_month_is_passed_and_undone(host: Host) -> None:
    host.start()
    host.limit(8)
    assert host.chat().status_code == 200
    for _ in range(2):
        host.off_by(_until_next_month())
        assert host.chat().status_code in (200, 429)
        host.off_by(0)
        assert host.chat().status_code == 429
    host.off_by(_until_next_month() + 40 * 86_400)
    assert host.chat().status_code == 200


def _month(off_s: int) -> str:
    return datetime.fromtimestamp(time.time() + off_s, UTC).strftime("%Y-%m")


def _until_next_month() -> int:
    return int(month_of(time.time())[1] - time.time()) + 60


@pytest.fixture
async def stage(tmp_path: Path, standin: str) -> AsyncIterator[Stage]:
    async with stage_at(tmp_path, standin, prices=PRICES) as opened:
        yield opened


async def test_a_gateway_that_starts_ahead_reads_the_right_month_when_the_clock_is_right(
    stage: Stage,
) -> None:
    await stage.spend_limit(11)
    assert (await stage.ask(max_tokens=20)).status_code == 200
    assert await stage.services.ledger.applied()
    at = [time.time() + YEAR_S]
    database, ledger = stage.services.database, stage.services.ledger
    control = await open_admission(stage.config, database, clock=lambda: at[0], applied=ledger.applied)
    stage.replace(control=control)
    assert control.budgets.spent(stage.tenant.project_id) == 0
    at[0] -= YEAR_S
    assert (await stage.ask(max_tokens=20)).status_code == 429
    assert control.budgets.spent(stage.tenant.project_id) == COST
    # Months that were visited in between are read again.
    for days in (400, 800, 1200, 0):
        at[0] = time.time() + days * 86_400
        assert (await stage.ask(max_tokens=20)).status_code == (200 if days else 429)
    assert len(control.budgets.months()) <= 4


class _Ledger:
    """Stands for the ledger: what it has of a month, unless it is away."""

    def __init__(self) -> None:
        self.spent: dict[int, dict[str, int]] = {}
        self.reads: list[int] = []
        self.away = False
        self.behind = False
        self.hold = asyncio.Event()
        self.hold.set()

    async def read(self, since: int, *, until: int) -> dict[str, int]:
        assert until == month_of(since)[1]
        self.reads.append(since)
        await self.hold.wait()
        if self.away:
            raise StorageUnavailable("away")
        return self.spent.get(since, {})

    async def applied(self) -> bool:
        return not self.behind


async def test_a_month_turns_without_the_ledger() -> None:
    at, ledger = time.time(), _Ledger()
    budgets = Budgets(lambda: at)
    spend = MonthlySpend(budgets, ledger.read, ledger.applied)
    current, following = month_of(at)
    await spend.ready(at)
    await asyncio.sleep(0)
    assert sorted(ledger.reads) == [current, following]
    ledger.away = True
    await spend.ready(following + 1.0)
    assert budgets.loaded(following)


@pytest.mark.parametrize("fault", ["away", "behind"])
async def test_a_month_that_cannot_be_read_refuses_and_is_read_later(fault: str) -> None:
    """Rather than let a tenant spend a month's budget twice."""
    at, ledger = time.time(), _Ledger()
    budgets = Budgets(lambda: at)
    spend = MonthlySpend(budgets, ledger.read, ledger.applied)
    ledger.spent[month_of(at)[0]] = {"p": 7}
    setattr(ledger, fault, True)
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            await spend.ready(at)
    setattr(ledger, fault, False)
    await spend.ready(at)
    assert budgets.spent("p") == 7


async def test_many_that_wait_for_a_month_read_it_once_and_one_that_leaves_takes_nobody_along() -> None:
    at, ledger = time.time(), _Ledger()
    spend = MonthlySpend(Budgets(lambda: at), ledger.read, ledger.applied)
    ledger.hold.clear()
    waiting = [asyncio.create_task(spend.ready(at)) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    ledger.hold.set()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in done] == [asyncio.CancelledError] + [type(None)] * 49
    assert sorted(ledger.reads) == sorted(month_of(at))


async def test_an_alert_that_was_put_off_by_a_wrong_clock_is_told(tmp_path: Path, standin: str) -> None:
    async with alert_stage(tmp_path, standin) as stage:
        with receiving() as receiver:
            await make_alert(stage, COST_CENTS, hook(receiver))
            async with stage.services.database.begin() as connection:
                (alert_id,) = [alert.id for alert in await stage.services.alerts.store.every()]
                row: dict[str, Any] = {
                    "id": "msg_1",
                    "alert_id": alert_id,
                    "month": 0,
                    "threshold_cents": COST_CENTS,
                    "spent_cents": COST_CENTS,
                    "created_ms": int((time.time() + YEAR_S) * 1000),
                    "attempts": 1,
                    "next_attempt_ms": int((time.time() + YEAR_S) * 1000),
                }
                await connection.execute(alert_notifications.insert().values(**row))
            stage.services.alerts.deliveries.loop.wake()
            (answer,) = await outbox_when_over(stage, 1)
            assert answer["delivered_ms"] <= time.time() * 1000
            assert len(await outbox_rows(stage)) == len(receiver.arrivals) == 1
