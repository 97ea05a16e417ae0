"""What is answered where there is no endpoint, and where there is one that does nothing yet."""

import json
import time
from typing import Any

import openai
import pytest

from gateway.api.unsupported import UNSUPPORTED
from tests.gateway.raw_http import connected, head
from tests.process import Gateway


def _error(gateway: Gateway, method: str, path: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    with connected(gateway) as connection:
        connection.send(head(method, path, "Host: a", f"Authorization: Bearer {gateway.api_key}"))
        answer = connection.answer()
    return answer.status, answer.error, answer.headers


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("POST", "/completions", "/v1/completions"),
        ("POST", "/embeddings", "/v1/embeddings"),
        ("GET", "/models", "/v1/models"),
        ("GET", "/models/far", "/v1/models/far"),
        ("GET", "/organization/projects/p/api_keys", "/v1/organization/projects/p/api_keys"),
        ("POST", "/v1/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/v1/v1/chat/completions", "/v1/chat/completions"),
        ("GET", "/v1/v1/models/far", "/v1/models/far"),
        ("POST", "/api/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/openai/v1/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/", "/v1/chat/completions"),
        ("POST", "/v1//chat/completions", "/v1/chat/completions"),
        ("POST", "//v1/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/chat/completion", "/v1/chat/completions"),
        ("POST", "/v1/completion", "/v1/completions"),
        ("POST", "/v1/embedding", "/v1/embeddings"),
        ("POST", "/chat/completion", "/v1/chat/completions"),
        ("GET", "/v1/model", "/v1/models"),
        ("GET", "/healthz", "/health"),
        ("GET", "/health/", "/health"),
    ],
)
def test_a_404_says_what_is_meant(routed: Gateway, method: str, path: str, meant: str) -> None:
    status, error, _ = _error(routed, method, path)
    assert (status, error["type"], error["code"]) == (404, "invalid_request_error", "not_found")
    assert error["message"].startswith(f"Unknown endpoint: {method} {path}. Did you mean {meant}?")


@pytest.mark.parametrize(
    ("path", "hint"),
    [("/chat/completions", "must end in /v1"), ("/v1/v1/chat/completions", "both have /v1")],
)
def test_a_404_says_what_is_wrong_with_the_base_url(routed: Gateway, path: str, hint: str) -> None:
    assert hint in _error(routed, "POST", path)[1]["message"]


@pytest.mark.parametrize("path", ["/", "/nowhere", "/v1", "/v1/", "/v2/complete/x", "/collective_rpc"])
def test_a_404_names_method_and_path(routed: Gateway, path: str) -> None:
    status, error, _ = _error(routed, "DELETE", path)
    assert (status, error["message"]) == (404, f"Unknown endpoint: DELETE {path}.")


@pytest.mark.parametrize(
    ("path", "repeated"),
    [
        ("/<script>alert(1)</script>", "/%3Cscript%3Ealert%281%29%3C/script%3E"),
        ("/a%0d%0aSet-Cookie:x", "/a%0D%0ASet-Cookie:x"),
        ("/%00%1b[31m", "/%00%1B%5B31m"),
        ("/%e2%80%ae", "/%E2%80%AE"),
        ("/%ff", "/%EF%BF%BD"),
        ("/a?key=secret", "/a"),
        ("/" + "x" * 5000, "/" + "x" * 127 + "..."),
    ],
)
def test_what_a_404_repeats_is_bounded_and_harmless(routed: Gateway, path: str, repeated: str) -> None:
    status, error, _ = _error(routed, "GET", path)
    assert (status, error["message"]) == (404, f"Unknown endpoint: GET {repeated}.")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PATCH", "/v1/models/far", "DELETE, GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/v1/organization/projects", "GET, HEAD, POST"),
        ("PUT", "/v1/files/file-1", "DELETE, GET, HEAD, POST"),
    ],
)
def test_a_405_names_the_methods(routed: Gateway, method: str, path: str, allowed: str) -> None:
    status, error, headers = _error(routed, method, path)
    assert (status, error["code"]) == (405, "method_not_allowed")
    assert error["message"] == f"{method} {path} is not allowed. Allowed: {allowed}."
    assert headers["allow"] == allowed


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_ready(routed: Gateway, method: str) -> None:
    with connected(routed) as connection:
        for path in ("/health", "/health/ready"):
            connection.send(head(method, path, "Host: a"))
            answer = connection.answer(method)
            assert answer.status == 200
            assert method == "HEAD" or json.loads(answer.body) == {"status": "ready"}
            assert int(answer.headers["content-length"]) == len(b'{"status":"ready"}')


@pytest.mark.parametrize(
    "name", ["a%2Fb", "a/b", "a/b/c", "org%2Fmodel%3Aq4", "%2F", "..%2Ffar", "far%2F", "a%20b"]
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_model_id_with_slashes_is_a_model_that_is_not_there(
    routed: Gateway, name: str, method: str
) -> None:
    status, error, _ = _error(routed, method, f"/v1/models/{name}")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")


def test_the_official_client_asks_for_a_model_with_a_slash(routed: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        routed.client().models.retrieve("meta-llama/Llama-3")
    assert caught.value.code == "model_not_found"
    assert "meta-llama/Llama-3" in caught.value.message


def test_a_model_id_that_is_empty_is_no_endpoint(routed: Gateway) -> None:
    status, error, _ = _error(routed, "GET", "/v1/models/")
    assert (status, error["code"]) == (404, "not_found")
    assert "Did you mean /v1/models?" in error["message"]


NOT_YET = ("responses", "messages", "files", "batches", "fine_tuning/jobs")


@pytest.mark.parametrize("path", [f"/v1/{path}{rest}" for path in NOT_YET for rest in ("", "/id", "/id/sub")])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_501_is_not_to_be_tried_again(routed: Gateway, method: str, path: str) -> None:
    status, error, headers = _error(routed, method, path)
    assert (status, error["code"]) == (501, "not_supported")
    assert headers["x-should-retry"] == "false"


def test_every_501_of_the_administration_is_not_to_be_tried_again(routed: Gateway) -> None:
    with routed.http(routed.admin_key) as http:
        for path in UNSUPPORTED:
            for rest in ("", "/id"):
                answer = http.get(path.replace("{", "").replace("}", "") + rest)
                assert (answer.status_code, answer.headers["x-should-retry"]) == (501, "false"), path


def test_a_call_that_another_server_cannot_do_is_not_to_be_tried_again(routed: Gateway) -> None:
    with routed.http() as http:
        answer = http.post("/tokenize", json={"model": "far", "prompt": "a"})
    assert (answer.status_code, answer.headers["x-should-retry"]) == (501, "false")


def test_the_official_client_tries_a_501_once(routed: Gateway) -> None:
    client = routed.client(max_retries=2)
    with pytest.raises(openai.InternalServerError) as caught:
        client.responses.create(model="far", input="a", extra_headers={"x-request-id": "once"})
    assert caught.value.status_code == 501
    deadline = time.monotonic() + 10
    while not routed.log.count("request_id=once") and time.monotonic() < deadline:
        time.sleep(0.02)  # the line is written after the answer
    assert routed.log.count("request_id=once") == 1
