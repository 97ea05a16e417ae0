"""Requests of one project that would stall others at the real engine: each is refused, bounded or charged."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.process import CHAT_MODEL, Gateway

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
MEGABYTES = "word " * 800_000
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "64 prompts with 64 choices": (
        TEXT,
        {"prompt": ["Hi"] * 64, "n": 64, "temperature": 1},
        "prompt",
        "too_many_sequences",
    ),
    "4 MB that are truncated": (
        TEXT,
        {"prompt": MEGABYTES, "truncate_prompt_tokens": 5},
        "prompt",
        "context_length_exceeded",
    ),
    "4 MB to tokenize": ("/tokenize", {"prompt": MEGABYTES}, "prompt", "context_length_exceeded"),
    "a million tokens to detokenize": (
        "/detokenize",
        {"tokens": [1] * 1_000_000},
        "tokens",
        "context_length_exceeded",
    ),
    "609 KB of choices": (
        CHAT,
        {
            "messages": MESSAGES,
            "structured_outputs": {"choice": [f"{number:0120d}" for number in range(5000)]},
        },
        "structured_outputs",
        "invalid_value",
    ),
}


def _distinct_lengths() -> dict[str, Any]:
    """A small schema that xgrammar compiles for minutes."""
    names = [f"k{number}" for number in range(50)]
    properties = {name: {"type": "string", "maxLength": 1000 + at} for at, name in enumerate(names)}
    schema = {"type": "object", "properties": properties, "required": names}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.fixture(scope="module")
def tenant(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client with a key of another project."""
    with gateway.http(gateway.admin_key) as admin:
        project = admin.post("/v1/organization/projects", json={"name": "noisy"}).json()["id"]
        accounts = f"/v1/organization/projects/{project}/service_accounts"
        key = admin.post(accounts, json={"name": "noisy"}).json()["api_key"]["value"]
        with gateway.http(key) as client:
            client.headers["x-project"] = project
            yield client


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    return client.post(path, json={"model": CHAT_MODEL, **body})


def _one_token(gateway: Gateway) -> httpx.Response:
    with gateway.http() as client:
        return _post(client, CHAT, {"messages": MESSAGES, "max_tokens": 1})


@pytest.mark.parametrize("name", REFUSED)
def test_an_attack_is_refused_by_name(tenant: httpx.Client, name: str) -> None:
    path, body, param, code = REFUSED[name]
    response = _post(tenant, path, body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error["message"]


def test_a_schema_that_takes_minutes_fails_alone(gateway: Gateway, tenant: httpx.Client) -> None:
    responses: list[httpx.Response] = []
    body = {"messages": MESSAGES, "max_tokens": 4, "response_format": _distinct_lengths()}
    attack = threading.Thread(target=lambda: responses.append(_post(tenant, CHAT, body)))
    attack.start()
    small = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    constrained = {"type": "json_schema", "json_schema": {"name": "x", "schema": small}}
    with gateway.http() as client:
        answer = _post(client, CHAT, {"messages": MESSAGES, "max_tokens": 20, "response_format": constrained})
    assert answer.status_code == 200, answer.text
    attack.join(120)
    (response,) = responses
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "response_format"
    assert _one_token(gateway).status_code == 200


def test_many_sequences_share_the_engine_and_are_counted_exactly(
    gateway: Gateway, tenant: httpx.Client
) -> None:
    responses: list[httpx.Response] = []
    body = {
        "prompt": ["Once upon a time"] * 32,
        "n": 4,
        "max_tokens": 12,
        "temperature": 1,
        "ignore_eos": True,
    }
    wide = threading.Thread(target=lambda: responses.append(_post(tenant, TEXT, body)))
    wide.start()
    assert _one_token(gateway).status_code == 200
    wide.join(180)
    answer = responses[0].json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(128))
    assert answer["usage"]["completion_tokens"] == 128 * 12


def test_a_stream_of_many_sequences_has_every_choice(tenant: httpx.Client) -> None:
    body = {
        "messages": MESSAGES,
        "n": 100,
        "max_tokens": 4,
        "temperature": 1,
        "ignore_eos": True,
        "stream": True,
    }
    text = _post(tenant, CHAT, {**body, "stream_options": {"include_usage": True}}).text
    assert text.endswith("data: [DONE]\n\n")
    assert '"completion_tokens":400' in text.replace(" ", "")
    for index in (0, 50, 99):
        assert f'"index":{index},' in text.replace(" ", "")


def test_a_client_that_leaves_many_sequences_frees_the_engine(gateway: Gateway, tenant: httpx.Client) -> None:
    body = {"model": CHAT_MODEL, "prompt": ["Once"] * 64, "n": 2, "max_tokens": 400, "ignore_eos": True,
            "temperature": 1, "stream": True}  # fmt: skip
    with tenant.stream("POST", TEXT, json=body) as response:
        assert response.status_code == 200
        next(response.iter_lines())
    assert _one_token(gateway).status_code == 200


def test_tokenize_is_under_the_limits_of_its_project(gateway: Gateway, tenant: httpx.Client) -> None:
    project = tenant.headers["x-project"]
    with gateway.http(gateway.admin_key) as admin:
        path = f"/v1/organization/projects/{project}/rate_limits/rl-{CHAT_MODEL}"
        assert admin.post(path, json={"max_requests_per_1_minute": 2}).is_success
        statuses = [_post(tenant, "/tokenize", {"prompt": "Hello"}).status_code for _ in range(4)]
        assert statuses.count(429) >= 2
        refused = _post(tenant, "/tokenize", {"prompt": "Hello"})
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        large = _post(tenant, TEXT, {"prompt": MEGABYTES[:100_000], "truncate_prompt_tokens": 5})
        assert large.status_code == 429, "requests are counted before tokens are"
        assert admin.post(path, json={"max_requests_per_1_minute": 1000}).is_success
