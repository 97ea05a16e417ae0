"""What the gateway makes of an engine that misbehaves, over real connections."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.gateway.entries import last_entry
from tests.process import Gateway, running_gateway

_MIB = 1024 * 1024


def _body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "far", "messages": [{"role": "user", "content": text}], **fields}


def _lines(gateway: Gateway, text: str, **fields: Any) -> list[str]:
    with (
        gateway.http() as http,
        http.stream("POST", "/v1/chat/completions", json=_body(text, stream=True, **fields)) as response,
    ):
        return [line for line in response.iter_lines() if line]


def test_a_stream_comes_through_and_is_metered(routed: Gateway) -> None:
    lines = _lines(routed, "hello")
    assert lines[-1] == "data: [DONE]"
    text = "".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in lines[:-1])
    assert text == "The capital of France is Paris."
    assert not any("usage" in line for line in lines)
    entry = last_entry(routed)
    assert (entry["outcome"], entry["input_tokens"], entry["output_tokens"]) == ("completed", 37, 7)
    assert not entry["estimated"]


def test_a_cut_stream_ends_with_an_error_event(routed: Gateway) -> None:
    lines = _lines(routed, "fault:cut")
    assert json.loads(lines[-1][6:])["error"]["code"] == "engine_failed"
    assert "data: [DONE]" not in lines
    entry = last_entry(routed)
    assert entry["outcome"] == "failed"
    assert (entry["estimated"], entry["output_tokens"]) == (1, 4)  # "The capital of"


def test_an_engines_error_event_is_put_into_the_envelope(routed: Gateway) -> None:
    lines = _lines(routed, "fault:error")
    error = json.loads(lines[-1][6:])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "engine_failed"
    assert "/opt" not in error["message"]
    assert "data: [DONE]" not in lines


@pytest.mark.parametrize("stream", [False, True])
def test_without_reported_usage_the_entry_is_estimated(routed: Gateway, stream: bool) -> None:
    if stream:
        _lines(routed, "fault:no-usage")
    else:
        with routed.http() as http:
            assert http.post("/v1/chat/completions", json=_body("fault:no-usage")).is_success
    entry = last_entry(routed)
    assert entry["estimated"]
    assert entry["input_tokens"] > 0
    assert entry["output_tokens"] == 8  # 31 bytes of text, and nothing that they are wrapped in


def test_leaving_an_engine_that_tells_nothing_is_not_free(routed: Gateway) -> None:
    """A `url` engine cannot tell what an abandoned call has cost: the cost is estimated."""
    with routed.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=_body("fault:slow"), timeout=0.5)
    entry = last_entry(routed)
    assert (entry["outcome"], bool(entry["estimated"])) == ("aborted", True)
    assert entry["input_tokens"] > 0


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [("fault:overloaded", 503, "engine_unavailable"), ("fault:garbage", 502, "engine_failed")],
)
def test_an_engine_that_refuses_or_babbles(routed: Gateway, text: str, status: int, code: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        routed.client().chat.completions.create(**_body(text))
    assert (caught.value.status_code, caught.value.body["code"]) == (status, code)  # type: ignore[index]


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_is_away(routed: Gateway, stream: bool) -> None:
    with routed.http() as http:
        response = http.post("/v1/chat/completions", json={**_body("hello", stream=stream), "model": "away"})
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "engine_failed"
    assert "127.0.0.1" not in response.text


def test_only_openais_own_fields_and_no_header_go_to_somebody_elses_engine(routed: Gateway) -> None:
    with routed.http() as http:
        answer = http.post(
            "/v1/chat/completions",
            json=_body("echo", temperature=0.5, top_k=3, cache_salt="x", min_tokens=2),
            headers={"x-secret": "s", "cookie": "c=1"},
        ).json()
    seen = json.loads(answer["choices"][0]["message"]["content"])
    assert set(seen["body"]) == {"model", "messages", "temperature"}
    assert "x-secret" not in seen["headers"]
    assert "cookie" not in seen["headers"]
    assert "authorization" not in seen["headers"]


def test_a_slow_client_holds_the_engine_back(routed: Gateway) -> None:
    """The engine offers 256 MiB at once; what the gateway holds of it stays bounded."""
    assert routed.process is not None
    process = psutil.Process(routed.process.pid)
    before = process.memory_info().rss
    with (
        routed.http() as http,
        http.stream("POST", "/v1/chat/completions", json=_body("fault:flood", stream=True)) as response,
    ):
        reading = response.iter_raw(65536)
        next(reading)
        time.sleep(2)
        assert process.memory_info().rss - before < 32 * _MIB
        assert len(next(reading)) > 0


def test_a_client_that_takes_nothing_counts_as_gone(standin: str, tmp_path: Path) -> None:
    models = f'[[models]]\nid = "far"\nurl = "{standin}"\n'
    with (
        running_gateway(tmp_path, models, sections="send_timeout_s = 1.0\n") as impatient,
        impatient.http() as http,
        http.stream("POST", "/v1/chat/completions", json=_body("fault:flood", stream=True)),
    ):
        assert last_entry(impatient)["outcome"] == "aborted"


def test_headers_of_a_stream(routed: Gateway) -> None:
    with (
        routed.http() as http,
        http.stream(
            "POST",
            "/v1/chat/completions",
            json=_body("hello", stream=True),
            headers={"x-request-id": "bad id\twith spaces"},
        ) as response,
    ):
        headers = response.headers
        response.read()
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-torpor-engine"] == "hot"
    assert headers["x-request-id"].startswith("req_")
    assert "ttft;dur=" in headers["server-timing"]
    assert headers["cache-control"] == "no-cache"
