"""The size of a prompt in bytes, and the bound on it that holds before anything is tokenized.

Tokenizing takes time in proportion to the text, at the gateway and at the engine, even if the engine
truncates the prompt afterwards. A token of a natural text has 3 to 5 bytes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway.http.errors import ApiError, invalid_request
from gateway.inference.calls import ChatCall, CompletionCall, DetokenizeCall, EmbeddingCall, TokenizeCall
from gateway.inference.catalog import Model
from gateway.inference.sequences import prompts_of

BYTES_A_TOKEN = 16
"""The most bytes of a prompt for each token of the model's longest sequence."""


def check_prompt_size(model: Model, call: Any, body: Mapping[str, Any], body_bytes: int) -> None:
    """Check the size of each prompt, and of all that are to be truncated together; raise 400 if too large.

    ``body_bytes`` is the size of the whole call: a smaller one than the bound is not looked into.
    """
    if model.max_model_len is None:
        return
    limit = BYTES_A_TOKEN * model.max_model_len
    if body_bytes <= limit:
        return
    param, sizes = _sizes(call, body)
    truncated = body.get("truncate_prompt_tokens") is not None
    size = sum(sizes) if truncated else max(sizes, default=0)
    if size > limit:
        raise _too_large(model.max_model_len, limit, size, param, together=truncated and len(sizes) > 1)


def _too_large(tokens: int, limit: int, size: int, param: str, *, together: bool) -> ApiError:
    whose = "The prompts that are to be truncated have" if together else "The prompt has"
    return invalid_request(
        f"{whose} {size:,} bytes, more than the {limit:,} that a context of {tokens:,} tokens can hold "
        f"({BYTES_A_TOKEN} for each token). Please reduce the length of '{param}'.",
        param,
        "context_length_exceeded",
    )


def _sizes(call: Any, body: Mapping[str, Any]) -> tuple[str, list[int]]:
    """The field of the input, and the bytes of each prompt; of tokens, their number."""
    if isinstance(call, DetokenizeCall):
        return "tokens", [len(call.tokens)]
    if isinstance(call, ChatCall) or (isinstance(call, TokenizeCall) and call.messages is not None):
        tools = body.get("tools")
        size = sum(_text_sizes(body["messages"])) + (len(msgspec.json.encode(tools)) if tools else 0)
        return "messages", [size]
    if isinstance(call, TokenizeCall):
        return "prompt", [_size(call.prompt or "")]
    if isinstance(call, CompletionCall):
        return "prompt", [_size(prompt) for prompt in prompts_of(call.prompt)]
    if isinstance(call, EmbeddingCall):
        return "input", [_size(text) for text in prompts_of(call.input)]
    return "messages", []


def _size(prompt: str | list[Any]) -> int:
    return len(prompt.encode(errors="replace")) if isinstance(prompt, str) else len(prompt)


def _text_sizes(messages: Iterable[Any]) -> Iterable[int]:
    """The bytes of each text in the messages, without images, audio and video."""
    for message in messages:
        for name, value in message.items():
            if isinstance(value, str):
                yield _size(value)
            elif name == "content":
                yield from (_size(part["text"]) for part in value if isinstance(part.get("text"), str))
            else:
                yield len(msgspec.json.encode(value))
