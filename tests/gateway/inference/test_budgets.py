"""Budgets over real HTTP: reserved, settled, and not overshot by a crowd."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.config.prices import PriceConfig
from gateway.inference.admission import open_admission
from metering.prices import DOLLAR
from tenants.limits.budgets import CENT, Crossing
from tests.engines.support import eventually
from tests.gateway.app_fixture import Stage, stage_at

PRICES = [PriceConfig(model="near", input=Decimal(1000), cached_input=Decimal(500), output=Decimal(2000))]
"""A tenth of a cent for a token of input, two tenths for one of output."""
INPUT, OUTPUT = CENT // 10, CENT // 5
COST = 37 * INPUT + 7 * OUTPUT
"""Of the stand-in's answer: 5.1 cents."""


@pytest.fixture
async def stage(tmp_path: Path, standin: str) -> AsyncIterator[Stage]:
    async with stage_at(tmp_path, standin, prices=PRICES) as opened:
        yield opened


def _spent(stage: Stage) -> tuple[int, int]:
    budgets = stage.control.budgets
    return budgets.spent(stage.tenant.project_id), budgets.spent(stage.tenant.organization_id)


def test_the_prices_are_as_said() -> None:
    assert PRICES[0].entry().price.input == INPUT
    assert PRICES[0].entry().price.output == OUTPUT
    assert COST == DOLLAR * 51 // 1000


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_costs_what_it_has_really_used(stage: Stage, stream: bool) -> None:
    await stage.spend_limit(100)
    assert (await stage.ask(max_tokens=20, stream=stream)).status_code == 200
    assert _spent(stage) == (COST, COST)
    assert (await stage.ask(max_tokens=20, stream=stream)).status_code == 200
    assert _spent(stage) == (2 * COST, 2 * COST)


async def test_a_crowd_cannot_overshoot(stage: Stage) -> None:
    """64 at once, each of which may cost 7.7 cents and costs 5.1: and all stay within the limit."""
    await stage.spend_limit(50)
    answers = await asyncio.gather(*[stage.ask(max_tokens=20) for _ in range(64)])
    counted = Counter(item.status_code for item in answers)
    assert set(counted) == {200, 429}
    assert 6 <= counted[200] <= 9
    assert _spent(stage)[0] == counted[200] * COST <= 50 * CENT
    refused = next(item for item in answers if item.status_code == 429)
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert error["message"].startswith("The monthly spend limit of the project of $0.50, with $")
    assert "which may cost up to $0.077. Please" in error["message"]
    # One after the other, all that is left can be spent.
    while (await stage.ask(max_tokens=20)).status_code == 200:
        pass
    assert 50 * CENT - 77 * CENT // 10 < _spent(stage)[0] <= 50 * CENT


async def test_the_official_client_does_not_try_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    await stage.spend_limit(1)
    refusals = 0
    check = stage.control.budgets.check

    def counted(*arguments: Any) -> None:
        nonlocal refusals
        refusals += 1
        check(*arguments)

    monkeypatch.setattr(type(stage.control.budgets), "check", lambda _self, *given: counted(*given))
    async with stage.openai(max_retries=3) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="near", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "insufficient_quota"
    assert refusals == 1


async def test_without_max_tokens_all_that_the_context_leaves_is_set_aside(stage: Stage) -> None:
    most = 37 * INPUT + (1000 - 37) * OUTPUT
    cents = -(-most // CENT)
    await stage.spend_limit(cents - 1)
    assert (await stage.ask()).json()["error"]["code"] == "insufficient_quota"
    assert (await stage.ask(max_completion_tokens=900, n=2)).status_code == 429
    await stage.spend_limit(cents)
    assert (await stage.ask()).status_code == 200
    assert _spent(stage)[0] == COST


@pytest.mark.parametrize("text", ["fault:overloaded", "fault:garbage"])
async def test_a_failure_that_generated_nothing_costs_nothing(stage: Stage, text: str) -> None:
    await stage.spend_limit(8)
    for _ in range(3):
        assert (await stage.ask(text, max_tokens=5)).status_code in (502, 503)
    assert _spent(stage) == (0, 0)
    assert (await stage.ask(max_tokens=5)).status_code == 200


async def test_a_client_that_leaves_gives_its_reservation_back(stage: Stage) -> None:
    await stage.spend_limit(100)
    leaving = asyncio.create_task(stage.ask("fault:slow", max_tokens=400))
    assert await eventually(lambda: len(stage.services.running) == 1)
    assert (await stage.ask(max_tokens=400)).status_code == 429
    leaving.cancel()
    await asyncio.wait({leaving})
    assert await eventually(lambda: not stage.services.running, 5.0)
    assert (await stage.ask(max_tokens=400)).status_code == 200


async def test_the_organizations_limit_holds_for_all_its_projects(stage: Stage) -> None:
    body = {"threshold_amount": 6, "currency": "USD", "interval": "month"}
    assert (await stage.admin.post("/v1/organization/spend_limit", json=body)).is_success
    assert (await stage.ask(max_tokens=10)).status_code == 200
    refused = await stage.ask(max_tokens=10)
    message = refused.json()["error"]["message"]
    assert message.startswith("The monthly spend limit of the organization does not cover this request"), (
        message
    )
    async with stage.client(stage.other.key) as other:
        body = {"model": "near", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
        assert (await other.post("/v1/chat/completions", json=body)).status_code == 200


async def test_what_was_spent_is_known_after_a_restart(stage: Stage) -> None:
    for _ in range(3):
        assert (await stage.ask(max_tokens=20)).status_code == 200
    assert _spent(stage) == (3 * COST, 3 * COST)
    assert await stage.services.ledger.applied()
    stage.replace(control=await open_admission(stage.config, stage.services.database))
    assert _spent(stage) == (3 * COST, 3 * COST)
    await stage.spend_limit(15)
    path = f"/v1/organization/projects/{stage.tenant.project_id}/spend_limit"
    assert (await stage.admin.get(path)).json()["enforcement"] == {"status": "enforcing"}
    assert (await stage.ask(max_tokens=1)).status_code == 429


async def test_a_threshold_is_told_once(stage: Stage) -> None:
    answer: list[Crossing] = []
    stage.control.budgets.on_crossing = answer.append
    stage.control.budgets.set_thresholds(stage.tenant.project_id, [6, 1000])
    for _ in range(4):
        assert (await stage.ask(max_tokens=20)).status_code == 200
    assert answer == [Crossing(stage.tenant.project_id, 6, 2 * COST)]


async def test_a_model_without_a_price_costs_nothing(stage: Stage) -> None:
    await stage.spend_limit(0)
    assert (await stage.ask(max_tokens=1)).status_code == 429
    assert (await stage.ask(model="far")).status_code == 200
