"""OpenAI's own request fields, and which of them an engine of this host cannot honour.

Source: the parameter types of the official ``openai`` Python client, 3.54.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from gateway.http.errors import ApiError, invalid_request
from gateway.inference.calls import Call, ChatCall, MediaPart, TokenizeCall

OPENAI_FIELDS = frozenset(
    {
        # chat completions
        "messages", "model", "audio", "frequency_penalty", "function_call", "functions", "logit_bias",
        "logprobs", "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "n",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
        "parallel_tool_calls", "prediction", "presence_penalty", "reasoning_effort", "response_format",
        "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "temperature",
        "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
        # completions
        "prompt", "best_of", "echo", "suffix",
        # embeddings
        "input", "dimensions", "encoding_format",
    }
)  # fmt: skip
"""All fields that are sent to a server behind a ``url``."""

_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "functions": "Use 'tools' in its place.",
        "function_call": "Use 'tool_choice' in its place.",
        "audio": "Models answer in text.",
        "moderation": "Answers are not moderated.",
        "web_search_options": "Models have no access to the web.",
    }
)
_ONLY: Mapping[str, Any] = MappingProxyType({"modalities": ["text"], "verbosity": "medium"})
"""Fields of which one value, OpenAI's default, is what an engine does anyway."""


def check_supported(call: Call, body: Mapping[str, Any], *, takes_media: bool) -> None:
    """Check a call's fields; raise 400 for one that would change the answer and that engines cannot honour.

    ``takes_media``: the model takes images, audio or video beside text.
    """
    if isinstance(call, ChatCall):
        for name, remedy in _REFUSED.items():
            if name in body:
                raise _unsupported(name, f"Unsupported parameter: '{name}'. {remedy}")
        for name, value in _ONLY.items():
            if name in body and body[name] != value:
                excerpt = msgspec.json.encode(value).decode()
                message = f"Unsupported value for '{name}': only {excerpt} is supported."
                raise invalid_request(message, name, "unsupported_value")
    if isinstance(call, ChatCall | TokenizeCall) and not takes_media:
        _check_text_only(call)


def _check_text_only(call: ChatCall | TokenizeCall) -> None:
    for index, message in enumerate(call.messages or ()):
        if not isinstance(message.content, list):
            continue
        for part_index, part in enumerate(message.content):
            if isinstance(part, MediaPart):
                kind = type(part).__struct_config__.tag
                raise _unsupported(
                    f"messages[{index}].content[{part_index}]",
                    f"The model takes text only, not parts of type {kind!r}.",
                )


def _unsupported(param: str, message: str) -> ApiError:
    return invalid_request(message, param, "unsupported_parameter")
