"""Tokens in the usage API are exactly those of the ``usage`` objects."""

import time
from typing import Any

import pytest

from tests.process import CHAT_MODEL, EMBED_MODEL, QUESTION, Gateway


def _totals(gateway: Gateway, project_id: str, since: int, kind: str = "completions") -> dict[str, int]:
    with gateway.http(gateway.admin_key) as http:
        page = http.get(
            f"/v1/organization/usage/{kind}",
            params={"start_time": since, "bucket_width": "1d", "project_ids[]": project_id},
        ).json()
    results = [result for bucket in page["data"] for result in bucket["results"]]
    names = ("input_tokens", "output_tokens", "input_cached_tokens", "num_model_requests")
    return {name: sum(result.get(name, 0) for result in results) for name in names}


@pytest.fixture
def project(gateway: Gateway) -> tuple[str, str]:
    """A project of its own, and a key of it."""
    created = gateway.torpor("project", "create", "usage-test").stdout.strip()
    return created, gateway.torpor("key", "create", "--project", created).stdout.strip()


def test_every_token_is_in_the_usage_api(gateway: Gateway, project: tuple[str, str]) -> None:
    project_id, key = project
    since = int(time.time()) - 5
    client = gateway.client(key)
    plain = client.chat.completions.create(model=CHAT_MODEL, messages=QUESTION, temperature=0)
    *_, last = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=QUESTION,
        n=2,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    listed = client.completions.create(model=CHAT_MODEL, prompt=["One", "Two and"], n=2, max_tokens=5)
    usages = [plain.usage, last.usage, listed.usage]
    assert _totals(gateway, project_id, since) == {
        "input_tokens": sum(usage.prompt_tokens for usage in usages if usage),
        "output_tokens": sum(usage.completion_tokens for usage in usages if usage),
        "input_cached_tokens": sum(_cached(usage) for usage in usages),
        "num_model_requests": 3,
    }
    embedded = client.embeddings.create(model=EMBED_MODEL, input=["one", "two"])
    totals = _totals(gateway, project_id, since, "embeddings")
    assert totals["input_tokens"] == embedded.usage.prompt_tokens
    assert totals["num_model_requests"] == 1


def _cached(usage: Any) -> int:
    details = usage.prompt_tokens_details
    return (details.cached_tokens or 0) if details else 0


def test_the_official_client_reads_usage(gateway: Gateway, project: tuple[str, str]) -> None:
    project_id, key = project
    since = int(time.time()) - 5
    gateway.client(key).chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=3)
    client = gateway.client(gateway.admin_key, admin_api_key=gateway.admin_key)
    page = client.admin.organization.usage.completions(
        start_time=since, bucket_width="1m", group_by=["model", "project_id"], project_ids=[project_id]
    )
    results = [result for bucket in page.data for result in bucket.results]
    assert [
        result.model for result in results if result.object == "organization.usage.completions.result"
    ] == [CHAT_MODEL]


def test_the_official_client_pages_through_usage_and_reads_costs(
    gateway: Gateway, project: tuple[str, str]
) -> None:
    project_id, key = project
    since = int(time.time()) - 5
    answer = gateway.client(key).chat.completions.create(model=CHAT_MODEL, messages=QUESTION, max_tokens=3)
    embedded = gateway.client(key).embeddings.create(model=EMBED_MODEL, input="one")
    assert answer.usage is not None
    usage = gateway.client(gateway.admin_key, admin_api_key=gateway.admin_key).admin.organization.usage

    page, pages = usage.completions(start_time=since - 7200, bucket_width="1h", limit=1), 1
    while page.has_more:
        assert len(page.data) == 1
        assert page.next_page is not None
        page = usage.completions(start_time=since - 7200, bucket_width="1h", limit=1, page=page.next_page)
        pages += 1
    assert pages >= 3

    costs = usage.costs(start_time=since, project_ids=[project_id], group_by=["line_item", "api_key_id"])
    result: list[Any] = [item for bucket in costs.data for item in bucket.results]
    cached = _cached(answer.usage)
    expected = {
        f"{CHAT_MODEL}, input_tokens": answer.usage.prompt_tokens - cached,
        f"{CHAT_MODEL}, cached_input_tokens": cached,
        f"{CHAT_MODEL}, output_tokens": answer.usage.completion_tokens,
        f"{EMBED_MODEL}, input_tokens": embedded.usage.prompt_tokens,
    }
    assert {item.line_item: item.quantity for item in result} == {
        name: tokens for name, tokens in expected.items() if tokens
    }
    assert len({item.api_key_id for item in result} - {None}) == 1

    span: dict[str, Any] = {
        "start_time": since,
        "end_time": since + 600,
        "bucket_width": "1m",
        "group_by": "model",
    }
    with gateway.http(key) as mine, gateway.http(gateway.admin_key) as admin:
        for kind in ("completions", "embeddings"):
            seen = mine.get(f"/v1/torpor/usage/{kind}", params=span).json()
            params = {**span, "project_ids[]": project_id}
            assert seen["data"] == admin.get(f"/v1/organization/usage/{kind}", params=params).json()["data"]
            assert [len(bucket["results"]) for bucket in seen["data"]].count(1) == 1


def test_a_client_that_leaves_is_charged_what_was_generated(
    gateway: Gateway, project: tuple[str, str]
) -> None:
    project_id, key = project
    since = int(time.time()) - 5
    long_answer = {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": "Write a very long story."}],
        "min_tokens": 1500,
        "max_tokens": 1500,
    }
    received = 0
    with (
        gateway.http(key) as http,
        http.stream("POST", "/v1/chat/completions", json={**long_answer, "stream": True}) as response,
    ):
        for line in response.iter_lines():
            received += line.startswith("data: ")
            if received == 20:
                break
    left_at = time.monotonic()
    while _in_flight(gateway):
        assert time.monotonic() - left_at < 1.5, "the engine still works for a client that is gone"
        time.sleep(0.05)
    totals = _settled(gateway, project_id, since, 1)
    assert 19 <= totals["output_tokens"] < 400

    with gateway.http(key) as http, pytest.raises(Exception, match="timed out"):
        http.post("/v1/chat/completions", json=long_answer, timeout=1.5)
    after_plain = _settled(gateway, project_id, since, 2)
    assert 5 < after_plain["output_tokens"] - totals["output_tokens"] < 400


def _in_flight(gateway: Gateway) -> int:
    with gateway.http(gateway.admin_key) as http:
        engines = http.get("/v1/torpor/engines").json()["data"]
    count: int = next(engine["in_flight"] for engine in engines if engine["id"] == CHAT_MODEL)
    return count


def _settled(gateway: Gateway, project_id: str, since: int, requests: int) -> dict[str, int]:
    """The totals once so many requests are settled: a client that left is settled after it left."""
    deadline = time.monotonic() + 5
    while (totals := _totals(gateway, project_id, since))["num_model_requests"] < requests:
        assert time.monotonic() < deadline, totals
        time.sleep(0.05)
    return totals


def test_a_repeated_request_id_buys_nothing(gateway: Gateway, project: tuple[str, str]) -> None:
    project_id, key = project
    since = int(time.time()) - 5
    client = gateway.client(key)
    for _ in range(3):
        client.chat.completions.create(
            model=CHAT_MODEL,
            messages=QUESTION,
            max_tokens=2,
            extra_headers={"x-request-id": "the-same"},
        )
    assert _totals(gateway, project_id, since)["num_model_requests"] == 3
    assert _totals(gateway, project_id, since)["output_tokens"] == 6
