"""The wire format that the relay relies on: the same assertions for the real engine and the stand-in."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import standin
from tests.process import CHAT_MODEL, Gateway

__all__ = ["standin"]


@pytest.fixture(params=["real", "standin"])
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[httpx.Client, str]]:
    """A client of the engine itself, and its model's name."""
    if request.param == "standin":
        with httpx.Client(base_url=request.getfixturevalue("standin"), trust_env=False) as client:
            yield client, "standin"
        return
    gateway: Gateway = request.getfixturevalue("gateway")
    gateway.client().chat.completions.create(
        model=CHAT_MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=1
    )
    transport = httpx.HTTPTransport(uds=_socket_of(gateway))
    with httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
        yield client, CHAT_MODEL


def _socket_of(gateway: Gateway) -> str:
    """The Unix socket of the chat model's engine, found by asking each that is awake."""
    for path in (gateway.folder / ".torpor/run").rglob("s"):
        transport = httpx.HTTPTransport(uds=str(path))
        client = httpx.Client(transport=transport, base_url="http://engine")
        with client, suppress(httpx.ReadTimeout):
            if client.get("/v1/models").json()["data"][0]["id"] == CHAT_MODEL:
                return str(path)
    raise AssertionError("the engine's socket was not found")


def _body(model: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 7,
        **fields,
    }


def test_a_plain_answer(engine: tuple[httpx.Client, str]) -> None:
    client, model = engine
    answer = client.post("/v1/chat/completions", json=_body(model)).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == model
    assert isinstance(answer["choices"][0]["message"]["content"], str)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 37
    assert usage["completion_tokens"] == 7
    assert usage["total_tokens"] == 44


def test_a_stream_with_usage_on_every_chunk(engine: tuple[httpx.Client, str]) -> None:
    client, model = engine
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = client.post("/v1/chat/completions", json=_body(model, stream=True, stream_options=options))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.endswith(b"\n\ndata: [DONE]\n\n")
    events = answer.text.removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
    assert all(event.startswith("data: {") for event in events)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 7
    assert all(chunk["usage"]["prompt_tokens"] == 37 for chunk in chunks)
    assert chunks[-1]["choices"] == []
    assert chunks[-2]["choices"][0]["finish_reason"] is not None


def test_a_stream_without_options_has_no_usage(engine: tuple[httpx.Client, str]) -> None:
    client, model = engine
    answer = client.post("/v1/chat/completions", json=_body(model, stream=True))
    assert '"usage":{' not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
