"""The wire format that the relay relies on: the same assertions for the real engine and the stand-ins."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.gateway import MODEL
from loadtest.targets import Engine
from loadtest.targets import standin as load_engine
from tests.gateway.conftest import standin
from tests.process import CHAT_MODEL, Gateway

__all__ = ["standin"]


@pytest.fixture(params=["real", "standin", "load standin", "load standin, Unix socket"])
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[httpx.Client, str]]:
    """A client of the engine itself, and its model's name."""
    if request.param == "standin":
        with httpx.Client(base_url=request.getfixturevalue("standin"), trust_env=False) as client:
            yield client, "standin"
        return
    if request.param != "real":
        engine: Engine = request.getfixturevalue("load_standin")
        uds = str(engine.uds) if "socket" in request.param else None
        transport = httpx.HTTPTransport(uds=uds)
        with httpx.Client(transport=transport, base_url=engine.url, trust_env=False) as client:
            yield client, MODEL
        return
    gateway: Gateway = request.getfixturevalue("gateway")
    gateway.client().chat.completions.create(
        model=CHAT_MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=1
    )
    transport = httpx.HTTPTransport(uds=_socket_of(gateway))
    with httpx.Client(transport=transport, base_url="http://engine", timeout=60) as client:
        yield client, CHAT_MODEL


@pytest.fixture(scope="module")
def load_standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The stand-in of the load tests."""
    with load_engine(tmp_path_factory.mktemp("standin")) as running:
        yield running


def _socket_of(gateway: Gateway) -> str:
    """The Unix socket of the chat model's engine, found by asking each that is awake."""
    # In the system's temporary folder if the path of the gateway's own would be too long for a socket.
    pattern, temporary = "engine-*/box/s", Path(tempfile.gettempdir())
    for path in (*(gateway.folder / ".torpor/run").glob(pattern), *temporary.glob(f"torpor-*/{pattern}")):
        transport = httpx.HTTPTransport(uds=str(path))
        client = httpx.Client(transport=transport, base_url="http://engine")
        with client, suppress(httpx.TransportError):
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


_FULL = ["load standin", "load standin, Unix socket", "real"]


def _shape(value: Any) -> Any:
    """Names and types, without the values: what a parser depends on."""
    if isinstance(value, dict):
        return {name: _shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shape(inner) for inner in value]
    return type(value).__name__


_CHUNK_HEAD: dict[str, Any] = {"id": "str", "object": "str", "created": "int", "model": "str"}
_COUNTS: dict[str, Any] = {"prompt_tokens": "int", "total_tokens": "int", "completion_tokens": "int"}


@pytest.mark.parametrize("engine", _FULL, indirect=True)
def test_every_field_of_a_plain_answer(engine: tuple[httpx.Client, str]) -> None:
    client, model = engine
    response = client.post("/v1/chat/completions", json=_body(model))
    assert response.headers["content-type"] == "application/json"
    assert response.headers["server"] == "uvicorn"
    message: dict[str, Any] = dict.fromkeys(
        ("refusal", "annotations", "audio", "function_call", "reasoning"), "NoneType"
    )
    details = {"cached_tokens": "int", "created_cache_tokens": "int", "multimodal_tokens": "NoneType"}
    nothing = (
        "prompt_logprobs",
        "prompt_token_ids",
        "prompt_text",
        "kv_transfer_params",
        "ec_transfer_params",
    )
    assert _shape(response.json()) == {
        **_CHUNK_HEAD,
        "choices": [
            {
                "index": "int",
                "message": {"role": "str", "content": "str", **message},
                "logprobs": "NoneType",
                "finish_reason": "str",
                **dict.fromkeys(("stop_reason", "token_ids", "routed_experts"), "NoneType"),
            }
        ],
        "service_tier": "NoneType",
        "system_fingerprint": "str",
        "usage": {**_COUNTS, "prompt_tokens_details": details, "completion_tokens_details": "NoneType"},
        **dict.fromkeys((*nothing, "metrics"), "NoneType"),
    }


@pytest.mark.parametrize("engine", _FULL, indirect=True)
@pytest.mark.parametrize("usage", ["none", "at the end", "continuous"])
def test_every_field_of_every_chunk(engine: tuple[httpx.Client, str], usage: str) -> None:
    client, model = engine
    options = {"include_usage": usage != "none", "continuous_usage_stats": usage == "continuous"}
    response = client.post("/v1/chat/completions", json=_body(model, stream=True, stream_options=options))
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [_shape(json.loads(event.removeprefix("data: "))) for event in events[:-2]]
    counted: dict[str, Any] = (
        {"usage": {**_COUNTS, "completion_tokens_details": "NoneType"}} if usage == "continuous" else {}
    )
    choice: dict[str, Any] = {"index": "int", "logprobs": "NoneType", "finish_reason": "NoneType"}
    role = {**choice, "delta": {"role": "str", "content": "str"}}
    token = {**choice, "delta": {"content": "str"}, "token_ids": "NoneType"}
    last = {**token, "finish_reason": "str", "stop_reason": "NoneType"}
    fingerprint: dict[str, Any] = {"system_fingerprint": "str"}
    expected: list[dict[str, Any]] = [
        {
            **_CHUNK_HEAD,
            "choices": [role],
            **counted,
            "prompt_token_ids": "NoneType",
            "prompt_text": "NoneType",
        },
        *[{**_CHUNK_HEAD, "choices": [token], **counted}] * 6,
        {**_CHUNK_HEAD, "choices": [last], **counted, **(fingerprint if usage == "none" else {})},
    ]
    if usage != "none":
        details = {"prompt_tokens_details": {"cached_tokens": "int", "created_cache_tokens": "int"}}
        expected.append({**_CHUNK_HEAD, "choices": [], "usage": {**_COUNTS, **details}, **fingerprint})
    assert chunks == expected


@pytest.mark.parametrize("engine", _FULL, indirect=True)
def test_a_request_that_the_engine_refuses(engine: tuple[httpx.Client, str]) -> None:
    client, model = engine
    response = client.post("/v1/chat/completions", json=_body(model, max_tokens=-1))
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("BadRequestError", 400)
    assert client.get("/nothing").json() == {"detail": "Not Found"}
    assert client.get("/health").content == b""
    assert [card["object"] for card in client.get("/v1/models").json()["data"]] == ["model"]
