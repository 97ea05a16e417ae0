"""Every parameter of the official client: served, taken and dropped, or refused by name before any wake."""

from typing import Any, get_type_hints

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as TextParams
from openai.types.embedding_create_params import EmbeddingCreateParams

from gateway.http.errors import ApiError
from gateway.inference import openai_fields
from gateway.inference.call_checks import check_call, without_nulls
from gateway.inference.calls import ENGINE_FIELDS, Call, ChatCall, CompletionCall, EmbeddingCall
from gateway.inference.openai_fields import OPENAI_FIELDS, check_supported

MESSAGES = [{"role": "user", "content": "Hello"}]
# The gateway honours these itself; `best_of` is checked, and never more than `n`.
_GATEWAYS = {"stream_options", "service_tier", "best_of"}
IGNORED_FIELDS = frozenset(
    {
        "metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "safety_identifier", "store",
    }
)  # fmt: skip
"""Taken and dropped: the answer is the same without them. Nothing is ever stored."""


def _chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": MESSAGES, **fields}


@pytest.mark.parametrize(
    ("params", "kind"),
    [(ChatParams, ChatCall), (TextParams, CompletionCall), (EmbeddingCreateParams, EmbeddingCall)],
)
def test_every_parameter_of_the_client_has_been_decided_on(params: Any, kind: type[Call]) -> None:
    names = set(params.__annotations__)
    for base in getattr(params, "__orig_bases__", ()):
        names |= set(getattr(base, "__annotations__", {}))
    names |= set(get_type_hints(params, localns=vars(openai_fields)) if not names else ())
    decided = ENGINE_FIELDS[kind] | _GATEWAYS
    if kind is ChatCall:
        refused = {"functions", "function_call", "audio", "moderation", "web_search_options"}
        decided |= IGNORED_FIELDS | refused | {"modalities", "verbosity"}
    assert names - decided == set()
    assert names - {"stream_options"} <= OPENAI_FIELDS


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"functions": []}, "unsupported_parameter"),
        ({"function_call": "auto"}, "unsupported_parameter"),
        ({"audio": {"voice": "a", "format": "wav"}}, "unsupported_parameter"),
        ({"moderation": {"model": "a"}}, "unsupported_parameter"),
        ({"web_search_options": {}}, "unsupported_parameter"),
        ({"modalities": ["audio"]}, "unsupported_value"),
        ({"modalities": ["text", "audio"]}, "unsupported_value"),
        ({"verbosity": "low"}, "unsupported_value"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(fields: dict[str, Any], code: str) -> None:
    body = _chat(**fields)
    with pytest.raises(ApiError) as caught:
        check_supported(check_call(body, ChatCall), body, takes_media=False)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, next(iter(fields)), code)


@pytest.mark.parametrize(
    "fields",
    [
        {"modalities": ["text"], "verbosity": "medium", "store": True, "metadata": {"a": "b"}},
        {
            "prediction": {"type": "content", "content": "a"},
            "prompt_cache_key": "k",
            "safety_identifier": "u",
        },
        dict.fromkeys(("functions", "function_call", "audio", "modalities", "web_search_options", "store")),
    ],
)
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    body = without_nulls(_chat(**fields))
    check_supported(check_call(body, ChatCall), body, takes_media=False)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "a"}},
    ],
)
def test_a_part_that_is_not_text_is_for_models_that_take_it(part: dict[str, Any]) -> None:
    body = _chat(messages=[*MESSAGES, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}])
    call = check_call(body, ChatCall)
    check_supported(call, body, takes_media=True)
    with pytest.raises(ApiError) as caught:
        check_supported(call, body, takes_media=False)
    assert caught.value.param == "messages[1].content[1]"
