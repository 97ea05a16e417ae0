"""Nulls, messages and values: what is absent, what is accepted, and what an error names."""

from typing import Any

import pytest

from gateway.http.errors import ApiError
from gateway.http.json_body import parse_object
from gateway.inference.call_checks import check_call, without_nulls
from gateway.inference.calls import (
    Call,
    ChatCall,
    CompletionCall,
    DetokenizeCall,
    EmbeddingCall,
    TokenizeCall,
)

USER = {"role": "user", "content": "Hello"}
_BODIES: dict[type[Call], dict[str, Any]] = {
    ChatCall: {"model": "m", "messages": [USER]},
    CompletionCall: {"model": "m", "prompt": "a"},
    EmbeddingCall: {"model": "m", "input": "a"},
    TokenizeCall: {"model": "m", "prompt": "a"},
    DetokenizeCall: {"model": "m", "tokens": [1]},
}


def _fault(body: dict[str, Any], kind: type[Call] = ChatCall) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_call(without_nulls(body), kind)
    assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
    return caught.value


@pytest.mark.parametrize("kind", _BODIES)
def test_every_optional_field_of_every_call_may_be_null(kind: type[Call]) -> None:
    required = _BODIES[kind]
    nulls = {name: None for name in kind.__struct_fields__ if name not in required}
    assert without_nulls({**required, **nulls}) == required
    assert check_call({**required, **nulls}, kind) == check_call(required, kind)


def test_nulls_inside_of_messages_and_options_are_absent() -> None:
    call = {
        "id": "a",
        "type": "function",
        "function": {"name": "f", "arguments": "{}", "parsed_arguments": None},
    }
    answered = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [call],
        "annotations": None,
    }
    schema = {"type": "object", "properties": {"a": {"default": None, "enum": [None, 1]}}}
    body = {
        "model": "m",
        "messages": [USER, answered, {"role": "tool", "tool_call_id": "a", "content": "5", "name": None}],
        "stream": True,
        "stream_options": {"include_usage": None},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "strict": None, "schema": schema},
        },
        "tools": [{"type": "function", "function": {"name": "f", "description": None, "parameters": schema}}],
        "chat_template_kwargs": {"a": None},
    }
    present = without_nulls(body)
    check_call(present, ChatCall)
    assert present["messages"][1] == {
        "role": "assistant",
        "tool_calls": [{**call, "function": {"name": "f", "arguments": "{}"}}],
    }
    assert present["stream_options"] == {}
    assert present["response_format"]["json_schema"] == {"name": "x", "schema": schema}
    assert present["tools"][0]["function"] == {"name": "f", "parameters": schema}
    assert present["chat_template_kwargs"] == {"a": None}


@pytest.mark.parametrize(
    ("message", "param", "text"),
    [
        (
            {"role": "wizard", "content": "x"},
            "role",
            "Invalid value: 'wizard'. Supported values are: 'system', 'assistant', 'user', 'function', "
            "'tool', and 'developer'.",
        ),
        ({"content": "x"}, "role", "Missing required parameter: '{}'."),
        (
            {"role": "user", "content": 5},
            "content",
            "Invalid type for '{}': expected a string or an array, but got an integer instead.",
        ),
        ({"role": "user", "content": None}, "content", "Missing required parameter: '{}'."),
        ({"role": "assistant"}, "content", "Missing required parameter: '{}'."),
        ({"role": "user", "content": []}, "content", "'{}' must not be an empty array."),
        (
            {"role": "user", "content": [{"type": "wizard"}]},
            "content[0].type",
            "Invalid value: 'wizard'. Supported values are: 'text', 'image_url', 'input_audio', 'file', "
            "and 'refusal'.",
        ),
        (
            {"role": "user", "content": [{"type": "text"}]},
            "content[0].text",
            "Missing required parameter: '{}'.",
        ),
        ({"role": "tool", "content": "5"}, "tool_call_id", "Missing required parameter: '{}'."),
    ],
)
def test_a_message_names_its_fault(message: Any, param: str, text: str) -> None:
    error, path = _fault({"model": "m", "messages": [USER, message]}), f"messages[1].{param}"
    assert (error.param, error.message) == (path, text.replace("{}", path))


def test_a_message_is_an_object() -> None:
    error = _fault({"model": "m", "messages": ["hello"]})
    assert error.message == "Invalid type for 'messages[0]': expected an object, but got a string instead."


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"n": 129}, "n"),
        ({"n": 0}, "n"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": "x"}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning_effort": "wizard"}, "reasoning_effort"),
        ({"service_tier": "wizard"}, "service_tier"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"json": '{"$ref": "#"}'}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        (
            {"response_format": {"type": "structural_tag", "format": {"enum": ["x"] * 5001}}},
            "response_format",
        ),
        ({"structured_outputs": {"wizard": 1}}, "structured_outputs.wizard"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_limit(fields: dict[str, Any], param: str) -> None:
    error = _fault({"model": "m", "messages": [USER], **fields})
    assert error.param == param
    assert param.split("[")[0].split(".")[0] in error.message or "Supported values" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
    ],
)
def test_a_text_completion_names_its_fault(fields: dict[str, Any], param: str) -> None:
    assert _fault({"model": "m", "prompt": "a", **fields}, CompletionCall).param == param


@pytest.mark.parametrize(
    "fields", [{"best_of": 1}, {"best_of": 2, "n": 2}, {"suffix": ""}, {"max_tokens": 0}]
)
def test_a_text_completion_that_asks_for_what_there_is(fields: dict[str, Any]) -> None:
    check_call({"model": "m", "prompt": "a", **fields}, CompletionCall)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"top_k": 1208925819614629174706176}', "top_k"),
        (b'{"messages": [{"a": [1, -9223372036854775809]}]}', "messages[0].a[1]"),
        (b'{"a": {"b": 18446744073709551616}}', "a.b"),
        (b'{"a": [%s]}' % (b"9" * 5000), "a[0]"),
    ],
)
def test_an_integer_beyond_64_bits_is_named(body: bytes, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(body, 64)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"temperature": 1e999}', "temperature"),
        (b'{"a": [1, -1e400]}', "a[1]"),
        (b'{"logit_bias": {"5": NaN}}', "logit_bias.5"),
        (b'{"a": -Infinity}', "a"),
    ],
)
def test_a_number_that_is_not_finite_is_named(body: bytes, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(body, 64)
    assert (caught.value.param, caught.value.code) == (param, "invalid_json")


@pytest.mark.parametrize(
    "body", [b'{"a": 18446744073709551615}', b'{"a": -9223372036854775808}', b'{"a": 1e300}']
)
def test_numbers_of_64_bits_are_taken(body: bytes) -> None:
    assert parse_object(body, 64)
