"""Rate limits over real HTTP: exact under concurrency, told right, and given back however a request ends."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from gateway.config.sections import LimitsConfig
from tenants.limits.rate_limits import MOST
from tenants.types import ProjectPrincipal
from tests.engines.support import eventually
from tests.gateway.app_fixture import CONTEXT, SECOND, Stage, stage_at

ASKED, ANSWERED = 37, 7
"""Tokens of the question and of the stand-in's answer."""
CLIENTS = 64


@pytest.fixture
async def stage(tmp_path: Path, standin: str) -> AsyncIterator[Stage]:
    async with stage_at(tmp_path, standin) as opened:
        yield opened


def _error(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["type"], error["code"]


def _rates(response: httpx.Response) -> dict[str, str]:
    names = ("limit", "remaining", "reset")
    pairs = [(f"{name}-{unit}", response.headers.get(f"x-ratelimit-{name}-{unit}"))
             for unit in ("requests", "tokens") for name in names]  # fmt: skip
    return {name: value for name, value in pairs if value is not None}


async def _crowd(stage: Stage, requests_each: int) -> list[httpx.Response]:
    """Send requests of several clients at once, ``requests_each`` by each client, one after the other."""

    async def one() -> list[httpx.Response]:
        return [await stage.ask() for _ in range(requests_each)]

    return [
        response for answers in await asyncio.gather(*[one() for _ in range(CLIENTS)]) for response in answers
    ]


async def test_sixty_four_clients_get_exactly_what_the_limit_allows(stage: Stage) -> None:
    """Not one more while time stands still, and exactly what has freed when it has gone on."""
    await stage.limit(max_requests_per_1_minute=100)
    assert Counter(item.status_code for item in await _crowd(stage, 3)) == {200: 100, 429: 92}
    stage.clock.ns += 30 * SECOND
    assert Counter(item.status_code for item in await _crowd(stage, 1)) == {200: 50, 429: 14}


async def test_sixty_four_clients_and_a_limit_of_tokens(stage: Stage) -> None:
    """Each request takes its input at once and its output when it has it: debt of what ran, and no more."""
    await stage.limit(max_tokens_per_1_minute=40 * ASKED)
    answers = await _crowd(stage, 1)
    passed = sum(item.status_code == 200 for item in answers)
    assert (40 * ASKED) // (ASKED + ANSWERED) <= passed <= 40
    owed = passed * (ASKED + ANSWERED) - 40 * ASKED
    refused = await stage.ask()
    freed_after_s = -(-(owed + ASKED) * 60 // (40 * ASKED))
    assert refused.headers["retry-after"] == str(freed_after_s)
    stage.clock.ns += freed_after_s * SECOND
    assert (await stage.ask()).status_code == 200


async def test_a_refusal_says_what_when_and_takes_nothing(stage: Stage) -> None:
    await stage.limit(max_requests_per_1_minute=7, max_tokens_per_1_minute=1000)
    for _ in range(7):
        assert (await stage.ask()).status_code == 200
    stage.clock.ns += 1
    refused = [await stage.ask() for _ in range(5)]
    for response in refused:
        assert _error(response) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert response.json()["error"]["message"] == (
            "Rate limit reached for requests per minute of the project for `near`: limit 7, remaining 0, "
            "requested 1. Please try again in 9s."
        )
        assert response.headers["retry-after"] == "9"
        assert "x-should-retry" not in response.headers
        assert _rates(response) == _rates(refused[0])
    assert _rates(refused[0]) == {
        "limit-requests": "7", "remaining-requests": "0", "reset-requests": "1m0s",
        "limit-tokens": "1000", "remaining-tokens": str(1000 - 7 * 44), "reset-tokens": "18.48s",
    }  # fmt: skip
    stage.clock.ns += 9 * SECOND
    assert (await stage.ask()).status_code == 200


async def test_headers_of_an_answer_show_the_tightest_limits(stage: Stage) -> None:
    assert _rates(await stage.ask()) == {}
    await stage.limit(
        max_requests_per_1_minute=60, max_requests_per_1_day=1000, max_tokens_per_1_minute=150_000
    )
    assert _rates(await stage.ask()) == {
        "limit-requests": "60", "remaining-requests": "59", "reset-requests": "1s",
        "limit-tokens": "150000", "remaining-tokens": str(150_000 - ASKED - ANSWERED), "reset-tokens": "18ms",
    }  # fmt: skip
    await stage.limit_key(max_requests_per_1_day=10)
    assert _rates(await stage.ask())["remaining-requests"] == "9"
    bad = await stage.ask(max_tokens=CONTEXT)
    assert bad.status_code == 400
    assert _rates(bad)["remaining-requests"] == "9", "what is refused as it is takes nothing"


async def test_the_official_client_waits_as_long_as_it_is_told(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """And then its second try passes."""
    stage.clock.ns = 0
    await stage.limit(max_requests_per_1_minute=1)
    assert (await stage.ask()).status_code == 200
    async with stage.openai() as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="near", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "60"
    stage.clock.ns = 59 * SECOND + 1
    async with stage.openai(max_retries=1) as client:
        caplog.set_level("INFO", "torpor.access")
        caplog.clear()
        asking = asyncio.create_task(
            client.chat.completions.create(model="near", messages=[{"role": "user", "content": "hi"}])
        )
        assert await eventually(lambda: any(item.fields["status"] == 429 for item in caplog.records))  # type: ignore[attr-defined]
        stage.clock.ns = 60 * SECOND
        assert (await asking).choices


async def test_a_change_holds_for_the_very_next_request(stage: Stage) -> None:
    await stage.limit(max_requests_per_1_minute=1)
    assert (await stage.ask()).status_code == 200
    assert (await stage.ask()).status_code == 429
    await stage.limit(max_requests_per_1_minute=2)
    assert (await stage.ask()).status_code == 200
    assert (await stage.ask()).status_code == 429
    await stage.limit(max_requests_per_1_minute=None)
    assert (await stage.ask()).status_code == 200
    limit_id = await stage.limit_key(max_requests_per_1_minute=1)
    assert (await stage.ask()).status_code == 200
    assert (await stage.ask()).status_code == 429
    assert (await stage.admin.delete(f"/v1/torpor/limits/{limit_id}")).is_success
    assert (await stage.ask()).status_code == 200


async def test_a_project_and_a_model_are_limited_by_themselves(stage: Stage) -> None:
    await stage.limit(max_requests_per_1_minute=1)
    assert (await stage.ask()).status_code == 200
    assert (await stage.ask()).status_code == 429
    assert (await stage.ask(model="far")).status_code == 200
    async with stage.client(stage.other.key) as other:
        response = await other.post(
            "/v1/chat/completions", json={"model": "near", "messages": [{"role": "user", "content": "hi"}]}
        )
    assert response.status_code == 200
    assert _rates(response) == {}


async def test_input_is_counted_before_the_request(stage: Stage) -> None:
    await stage.limit(max_tokens_per_1_minute=ASKED)
    assert (await stage.ask()).status_code == 200
    await stage.limit(max_tokens_per_1_minute=ASKED - 1)
    refused = await stage.ask()
    assert _error(refused) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert refused.headers["x-should-retry"] == "false"
    assert (
        f"limit {ASKED - 1}, requested {ASKED}. It exceeds the limit on its own"
        in refused.json()["error"]["message"]
    )


async def test_a_stream_owes_its_output_as_it_is_generated(stage: Stage) -> None:
    await stage.limit(max_tokens_per_1_minute=60)
    body = {"model": "near", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    left = []
    async with stage.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        assert _rates(response)["remaining-tokens"] == str(60 - ASKED)
        principal = await stage.services.tenants.credentials.authenticate(stage.tenant.key)
        assert isinstance(principal, ProjectPrincipal)
        async for _ in response.aiter_lines():
            standing = stage.control.admissions.standings(principal, "near").tokens
            assert standing is not None
            left.append(standing.remaining)
    assert left == sorted(left, reverse=True)
    assert left[-1] == 60 - ASKED - ANSWERED


async def test_the_next_request_waits_for_the_debt(stage: Stage) -> None:
    await stage.limit(max_tokens_per_1_minute=ASKED)
    assert (await stage.ask()).status_code == 200
    refused = await stage.ask()
    seconds = -(-(ASKED + ANSWERED) * 60 // ASKED)
    assert refused.headers["retry-after"] == str(seconds)
    stage.clock.ns += (seconds - 1) * SECOND
    assert (await stage.ask()).headers["retry-after"] == "1"
    stage.clock.ns += SECOND
    assert (await stage.ask()).status_code == 200


@pytest.mark.parametrize(
    ("model", "text", "left", "requests"),
    [
        ("near", "fault:overloaded", 1000, 9),
        ("near", "fault:garbage", 1000, 9),
        ("away", "hello", 1000, 9),
    ],
)
async def test_a_failure_that_generated_nothing_takes_no_tokens(
    stage: Stage, model: str, text: str, left: int, requests: int
) -> None:
    path = f"/v1/organization/projects/{stage.tenant.project_id}/rate_limits/rl-{model}"
    sizes = {"max_tokens_per_1_minute": 1000, "max_requests_per_1_minute": 10}
    assert (await stage.admin.post(path, json=sizes)).is_success
    response = await stage.ask(text, model=model)
    assert response.status_code in (502, 503)
    assert _rates(response)["remaining-tokens"] == str(left)
    assert _rates(response)["remaining-requests"] == str(requests)


async def test_what_never_came_to_an_engine_takes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.limit(max_tokens_per_1_minute=1000, max_requests_per_1_minute=10)
    await stage.limit_key(max_concurrent_requests=1)
    with monkeypatch.context() as broken:
        broken.setattr(type(stage.services.ledger), "accepts", False)
        for _ in range(3):
            response = await stage.ask()
            assert _error(response) == (503, "server_error", "storage_unavailable")
            assert _rates(response)["remaining-requests"] == "10"
    assert _rates(await stage.ask())["remaining-requests"] == "9"


@pytest.mark.parametrize("stream", [False, True])
async def test_concurrent_requests_are_limited_and_a_client_that_leaves_frees_its_place(
    stage: Stage, stream: bool
) -> None:
    await stage.limit_key(max_concurrent_requests=2)
    async with stage.client(stage.tenant.key) as leaving:
        body = {"model": "near", "messages": [{"role": "user", "content": "fault:slow"}], "stream": stream}
        slow = [asyncio.create_task(leaving.post("/v1/chat/completions", json=body)) for _ in range(2)]
        assert await eventually(lambda: len(stage.services.running) == 2)
        refused = await stage.ask()
        assert _error(refused) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert "concurrent requests of the key: limit 2" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)
    assert await eventually(lambda: not stage.services.running, 5.0)
    assert [(await stage.ask()).status_code for _ in range(3)] == [200] * 3
    assert len(stage.control.admissions) == 0


async def test_a_client_that_asks_again_at_once_finds_its_place_free(stage: Stage) -> None:
    """A request's slot is given back before its last byte: one after the other, none is refused."""
    await stage.limit_key(max_concurrent_requests=1)
    for stream in [False, True] * 10:
        response = await stage.ask(stream=stream)
        assert response.status_code == 200, response.text
        if stream:
            assert response.text.endswith("data: [DONE]\n\n")


async def test_defaults_of_the_configuration_hold_for_each_project(tmp_path: Path, standin: str) -> None:
    async with stage_at(tmp_path, standin, limits=LimitsConfig(requests_per_minute=1)) as stage:
        assert (await stage.ask()).status_code == 200
        assert (await stage.ask()).status_code == 429
        await stage.limit(max_requests_per_1_minute=MOST)
        assert (await stage.ask()).status_code == 200
        await stage.limit(max_requests_per_1_minute=None)
        assert (await stage.ask()).status_code == 429


async def test_a_model_that_cannot_be_counted_is_estimated_and_corrected(stage: Stage) -> None:
    path = f"/v1/organization/projects/{stage.tenant.project_id}/rate_limits/rl-far"
    assert (await stage.admin.post(path, json={"max_tokens_per_1_minute": 1000})).is_success
    answer = await stage.ask(model="far")
    assert _rates(answer)["remaining-tokens"] == str(1000 - ASKED - ANSWERED)
