"""What is refused before any engine is asked, and what the error names."""

from typing import Any

import pytest

from gateway.http.errors import ApiError
from gateway.http.json_body import parse_object
from gateway.inference.call_checks import check_call
from gateway.inference.calls import ChatCall, CompletionCall, EmbeddingCall

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\xff"}',
        b"\x00",
        b"[]",
    ],
)
def test_what_is_no_json_object_is_a_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(body, 64)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("depth", [64, 500, 100_000])
def test_deep_nesting_is_a_400(depth: int) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(b'{"a":' + b"[" * depth + b"]" * depth + b"}", 64)
    assert caught.value.code == "too_deep"


def test_nesting_at_the_limit_is_accepted() -> None:
    parse_object(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}", 64)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "model", "missing_required_parameter"),
        ({"model": ""}, "model", "missing_required_parameter"),
        ({"model": 3, "messages": MESSAGES}, "model", "invalid_type"),
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({"model": "m", "messages": []}, "messages", "invalid_value"),
        ({"model": "m", "messages": "hello"}, "messages", "invalid_type"),
        ({"model": "m", "messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"model": "m", "messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"model": "m", "messages": MESSAGES, "max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"model": "m", "messages": MESSAGES, "max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"model": "m", "messages": MESSAGES, "n": True}, "n", "invalid_type"),
        ({"model": "m", "messages": MESSAGES, "stream": "yes"}, "stream", "invalid_type"),
        ({"model": "m", "messages": MESSAGES, "stop": [1]}, "stop[0]", "invalid_type"),
        (
            {"model": "m", "messages": MESSAGES, "stream_options": {"include_usage": True}},
            "stream_options",
            "invalid_value",
        ),
    ],
)
def test_a_chat_call_names_its_fault(body: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_call(body, ChatCall)
    error = caught.value
    assert (error.status, error.type, error.param, error.code) == (400, "invalid_request_error", param, code)


@pytest.mark.parametrize("prompt", ["text", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_every_form_of_prompt_is_accepted(prompt: Any) -> None:
    assert check_call({"model": "m", "prompt": prompt}, CompletionCall).prompt == prompt
    assert check_call({"model": "m", "input": prompt}, EmbeddingCall).input == prompt


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (["a", 5], "invalid_type"),
        ([[1], 2], "invalid_type"),
        ([[1], ["x"]], "invalid_type"),
        ([], "invalid_value"),
        ("", "invalid_value"),
        (["a"] * 2049, "invalid_value"),
    ],
)
def test_prompts_that_are_mixed_missing_or_too_many(prompt: Any, code: str) -> None:
    for field, kind in (("prompt", CompletionCall), ("input", EmbeddingCall)):
        with pytest.raises(ApiError) as caught:
            check_call({"model": "m", field: prompt}, kind)
        assert caught.value.code == code


def test_vectors_come_as_numbers_or_base64() -> None:
    with pytest.raises(ApiError) as caught:
        check_call({"model": "m", "input": "a", "encoding_format": "bytes"}, EmbeddingCall)
    assert caught.value.param == "encoding_format"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"top_k": "many"}, "top_k", "invalid_type"),
        ({"top_k": 2**80}, "top_k", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"structured_outputs": [1]}, "structured_outputs", "invalid_type"),
    ],
)
def test_fields_of_the_engine_are_checked(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_call({"model": "m", "messages": MESSAGES, **fields}, ChatCall)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_unknown_fields_are_no_fault() -> None:
    assert check_call({"model": "m", "messages": MESSAGES, "guided": {}}, ChatCall).model == "m"
