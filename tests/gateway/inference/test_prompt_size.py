"""The bound on the bytes of a prompt, in every form that a prompt has."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from engines.spec import ModelSpec
from gateway.http.errors import ApiError
from gateway.inference.call_checks import check_call
from gateway.inference.calls import (
    Call,
    ChatCall,
    CompletionCall,
    DetokenizeCall,
    EmbeddingCall,
    TokenizeCall,
)
from gateway.inference.catalog import Model
from gateway.inference.prompt_size import BYTES_A_TOKEN, check_prompt_size

CONTEXT = 100
LIMIT = CONTEXT * BYTES_A_TOKEN
MODEL = Model(ModelSpec(id="m", url="http://127.0.0.1:9"), 1, CONTEXT, None, None)


def _check(kind: type[Call], model: Model = MODEL, **fields: Any) -> None:
    body = {"model": "m", **fields}
    check_prompt_size(model, check_call(body, kind), body, len(msgspec.json.encode(body)))


def _messages(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


TOO_LARGE: dict[str, tuple[type[Call], dict[str, Any], str]] = {
    "a prompt": (CompletionCall, {"prompt": "a" * (LIMIT + 1)}, "prompt"),
    "a prompt of two-byte characters": (CompletionCall, {"prompt": "é" * (LIMIT // 2 + 1)}, "prompt"),
    "a prompt that is truncated": (
        CompletionCall,
        {"prompt": "a" * (LIMIT + 1), "truncate_prompt_tokens": 5},
        "prompt",
    ),
    "prompts that are truncated": (
        CompletionCall,
        {"prompt": ["a" * LIMIT, "a"], "truncate_prompt_tokens": 5},
        "prompt",
    ),
    "tokens that are truncated": (
        CompletionCall,
        {"prompt": [1] * (LIMIT + 1), "truncate_prompt_tokens": 5},
        "prompt",
    ),
    "one of two prompts": (CompletionCall, {"prompt": ["a", "a" * (LIMIT + 1)]}, "prompt"),
    "messages": (ChatCall, {"messages": _messages("a" * LIMIT, "a")}, "messages"),
    "parts of a message": (
        ChatCall,
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a" * (LIMIT // 2 + 1)}] * 2},
            ]
        },
        "messages",
    ),
    "tools": (
        ChatCall,
        {
            "messages": _messages("a"),
            "tools": [{"type": "function", "function": {"name": "f", "description": "a" * LIMIT}}],
        },
        "messages",
    ),
    "an input": (EmbeddingCall, {"input": ["a" * (LIMIT + 1)]}, "input"),
    "a text to tokenize": (TokenizeCall, {"prompt": "a" * (LIMIT + 1)}, "prompt"),
    "messages to tokenize": (TokenizeCall, {"messages": _messages("a" * (LIMIT + 1))}, "messages"),
    "tokens to put together": (DetokenizeCall, {"tokens": [1] * (LIMIT + 1)}, "tokens"),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_large_prompt_is_refused_by_name_and_in_figures(name: str) -> None:
    kind, fields, param = TOO_LARGE[name]
    with pytest.raises(ApiError) as caught:
        _check(kind, **fields)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", param)
    assert f"{LIMIT:,}" in error.message


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionCall, {"prompt": "a" * LIMIT}),
        (CompletionCall, {"prompt": ["a" * LIMIT] * 3}),
        (ChatCall, {"messages": _messages("a" * (LIMIT - len("user")))}),
        (ChatCall, {"messages": _messages("a"), "user": "u" * (2 * LIMIT)}),
        (EmbeddingCall, {"input": ["a" * LIMIT] * 3}),
    ],
)
def test_what_the_context_can_hold_is_taken(kind: type[Call], fields: dict[str, Any]) -> None:
    _check(kind, **fields)


def test_a_model_of_unknown_length_has_no_bound() -> None:
    _check(CompletionCall, replace(MODEL, max_model_len=None), prompt="a" * 10 * LIMIT)
