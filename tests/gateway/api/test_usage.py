"""Usage and costs with the official client, against a gateway over real HTTP."""

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from gateway.config.prices import PriceConfig
from tests.gateway.app_fixture import Stage, stage_at

PRICES = [
    PriceConfig(
        model="near",
        input=Decimal(1000),
        cached_input=Decimal(500),
        output=Decimal(2000),
        engine_hour=Decimal("0.5"),
    )
]


@pytest.fixture
async def stage(tmp_path: Path, standin: str) -> AsyncIterator[Stage]:
    async with stage_at(tmp_path, standin, prices=PRICES) as opened:
        yield opened


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[AsyncOpenAI]:
    base_url = f"http://127.0.0.1:{stage.port}/v1"
    async with AsyncOpenAI(base_url=base_url, api_key="none", admin_api_key=stage.tenant.admin_key) as opened:
        yield opened


async def test_usage_and_costs_of_what_was_just_answered(stage: Stage, client: AsyncOpenAI) -> None:
    for stream in (False, True):
        assert (await stage.ask(max_tokens=20, stream=stream)).status_code == 200
    start = int(time.time()) - 3600
    usage = client.admin.organization.usage
    page = await usage.completions(
        start_time=start,
        group_by=["project_id", "model", "batch", "api_source"],
        project_ids=[stage.tenant.project_id],
    )
    results: list[Any] = [item for bucket in page.data for item in bucket.results]
    assert sum(item.num_model_requests for item in results) == 2
    assert {(item.model, item.project_id, item.api_source) for item in results} == {
        ("near", stage.tenant.project_id, "unlabeled")
    }
    assert sum(item.input_tokens for item in results) == 74
    embeddings = await usage.embeddings(start_time=start, bucket_width="1h")
    assert [bucket.results for bucket in embeddings.data] == [[]] * len(embeddings.data)
    costs = await usage.costs(start_time=start, group_by=["line_item", "api_key_id"])
    lines: list[Any] = [item for bucket in costs.data for item in bucket.results]
    items = {item.line_item: item for item in lines}
    assert set(items) == {"near, input_tokens", "near, output_tokens", "near, engine_seconds"}
    assert items["near, input_tokens"].amount.value == pytest.approx(0.074, abs=0)
    assert items["near, output_tokens"].amount.value == pytest.approx(0.028, abs=0)
    assert items["near, output_tokens"].quantity == 14
    assert items["near, input_tokens"].api_key_id == stage.tenant.key_id


async def test_a_project_sees_its_own_and_no_other(stage: Stage) -> None:
    assert (await stage.ask()).status_code == 200
    start = int(time.time()) - 3600
    async with stage.client(stage.other.key) as other:
        for path in ("usage", "usage/completions", "usage/embeddings", "costs"):
            for http, expected in ((stage.http, path not in ("usage/embeddings",)), (other, False)):
                answer = await http.get(
                    f"/v1/torpor/{path}", params={"start_time": start, "project_ids": stage.tenant.project_id}
                )
                assert answer.status_code == 200
                assert any(bucket["results"] for bucket in answer.json()["data"]) is expected


async def test_bad_queries_name_their_parameter(client: AsyncOpenAI) -> None:
    usage = client.admin.organization.usage
    with pytest.raises(openai.BadRequestError) as caught:
        await usage.costs(start_time=5, limit=181)
    assert caught.value.param == "limit"
    with pytest.raises(openai.BadRequestError) as caught:
        await usage.completions(start_time=5, group_by=["colour"])  # type: ignore[list-item]
    assert caught.value.param == "group_by"
