"""Bad input: the right envelope in under a second, and the engine untouched."""

import json
import socket
import subprocess
import time
from typing import Any

import httpx
import pytest

from tests.process import CHAT_MODEL, EMBED_MODEL, REPOSITORY, Gateway

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def _chat(**fields: Any) -> bytes:
    return json.dumps({"model": CHAT_MODEL, "messages": MESSAGES, **fields}).encode()


def _deep(depth: int) -> bytes:
    return b'{"model": "m", "messages": ' + b"[" * depth + b"]" * depth + b"}"


CASES: dict[str, tuple[str, bytes, dict[str, str], int, str | None]] = {
    "malformed": (CHAT, b'{"model": ', JSON, 400, "invalid_json"),
    "garbage": (CHAT, bytes(range(256)), JSON, 400, "invalid_json"),
    "empty": (CHAT, b"", JSON, 400, "invalid_json"),
    "array": (CHAT, b"[]", JSON, 400, "invalid_json"),
    "NaN": (CHAT, b'{"model": "m", "temperature": NaN}', JSON, 400, "invalid_json"),
    "deep": (CHAT, _deep(200), JSON, 400, "too_deep"),
    "very deep": (CHAT, _deep(100_000), JSON, 400, "too_deep"),
    "wrong type": (CHAT, _chat(max_tokens="many"), JSON, 400, "invalid_type"),
    "no messages": (CHAT, b'{"model": "smollm2-135m"}', JSON, 400, "missing_required_parameter"),
    "form": (
        CHAT,
        b"model=m",
        {"content-type": "application/x-www-form-urlencoded"},
        415,
        "unsupported_media_type",
    ),
    "no content type": (CHAT, _chat(), {}, 415, "unsupported_media_type"),
    "no model": (CHAT, b'{"messages": []}', JSON, 400, "missing_required_parameter"),
    "empty model": (CHAT, _chat(model=""), JSON, 400, "missing_required_parameter"),
    "unknown model": (CHAT, _chat(model="nobody"), JSON, 404, "model_not_found"),
    "model of 10 kB": (CHAT, _chat(model="m" * 10_000), JSON, 404, "model_not_found"),
    "wrong task": (CHAT, _chat(model=EMBED_MODEL), JSON, 400, "model_not_supported"),
    "long prompt": (
        CHAT,
        _chat(messages=[{"role": "user", "content": "word " * 9000}]),
        JSON,
        400,
        "context_length_exceeded",
    ),
    "long answer": (CHAT, _chat(max_tokens=9000), JSON, 400, "context_length_exceeded"),
    "long completion": (
        "/v1/completions",
        json.dumps({"model": CHAT_MODEL, "prompt": [1] * 9000}).encode(),
        JSON,
        400,
        "context_length_exceeded",
    ),
    "long embedding": (
        "/v1/embeddings",
        json.dumps({"model": EMBED_MODEL, "input": "word " * 2000}).encode(),
        JSON,
        400,
        "context_length_exceeded",
    ),
    "large body": (CHAT, b"x" * (5 * 1024 * 1024), JSON, 413, "request_too_large"),
    "unknown route": ("/v1/nothing", b"{}", JSON, 404, "not_found"),
    "an engine's own route": ("/collective_rpc", b"{}", JSON, 404, "not_found"),
    "an engine's sleep": ("/sleep", b"{}", JSON, 404, "not_found"),
    "not yet": ("/v1/responses", b"{}", JSON, 501, "not_supported"),
    "wrong method": ("/v1/models", b"{}", JSON, 405, "method_not_allowed"),
}


def _requests_of_engines(gateway: Gateway) -> str:
    """The engines' states: a request that reached one would have started it."""
    with gateway.http(gateway.admin_key) as http:
        engines = http.get("/v1/torpor/engines").json()["data"]
    return json.dumps([(engine["id"], engine["state"], len(engine["wakes"])) for engine in engines])


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_the_envelope(gateway: Gateway, name: str) -> None:
    path, body, headers, status, code = CASES[name]
    before = _requests_of_engines(gateway)
    started = time.monotonic()
    with gateway.http() as http:
        response = http.post(path, content=body, headers=headers)
    assert time.monotonic() - started < 1
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert len(error["message"]) < 500
    assert str(REPOSITORY) not in error["message"]
    assert "Traceback" not in error["message"]
    assert response.headers["x-request-id"]
    assert _requests_of_engines(gateway) == before


def test_unknown_and_forbidden_models_answer_alike(gateway: Gateway) -> None:
    with gateway.http() as http:
        bodies = {
            http.get(f"/v1/models/{name}").text.replace(name, "NAME") for name in ("a-model", "b-model")
        }
    assert len(bodies) == 1


@pytest.mark.parametrize("header", ["", "Bearer", "Basic abc", "Bearer sk-nobody", "Bearer " + "x" * 5000])
def test_a_bad_key_is_a_401(gateway: Gateway, header: str) -> None:
    response = httpx.get(f"{gateway.base_url}/models", headers={"authorization": header}, trust_env=False)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.json()["error"]["type"] == "authentication_error"


def test_a_slow_body_is_a_408(tmp_path_factory: pytest.TempPathFactory, gateway: Gateway) -> None:
    """At the timeout, which is 10 s unless configured."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {gateway.api_key}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        started = time.monotonic()
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert 9 < time.monotonic() - started < 12
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


def test_large_headers_are_a_431(gateway: Gateway) -> None:
    with gateway.http() as http:
        response = http.get("/v1/models", headers={"x-large": "x" * 40_000})
    assert response.status_code == 431
    assert response.json()["error"]["code"] == "headers_too_large"


def test_the_gateways_own_fields_have_no_effect(gateway: Gateway) -> None:
    """What would be refused or would change the answer at the engine is dropped on the way."""
    mine = {
        "cache_salt": 5,
        "priority": "first",
        "request_id": ["x"],
        "session_id": {},
        "kv_transfer_params": "x",
        "vllm_xargs": "x",
    }
    with gateway.http() as http:
        response = http.post(CHAT, content=_chat(max_tokens=2, **mine), headers=JSON)
    assert response.status_code == 200, response.text


def test_curl(gateway: Gateway) -> None:
    """What the README shows, with the real curl."""
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", f"{gateway.base_url}/chat/completions", "-H"]
        + [f"Authorization: Bearer {gateway.api_key}", "-H", "Content-Type: application/json", "-d"]
        + [_chat(temperature=0, max_tokens=5).decode()],
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)["object"] == "chat.completion"


def test_nothing_that_is_secret_is_in_the_log(gateway: Gateway) -> None:
    marker = "a prompt that must not be logged"
    with gateway.http() as http:
        http.post(
            CHAT, content=_chat(messages=[{"role": "user", "content": marker}], max_tokens=1), headers=JSON
        )
    log = gateway.log
    assert marker not in log
    assert not any(secret in log for name, secret in gateway.keys.items() if name.endswith("_KEY"))
    assert "status=200" in log
