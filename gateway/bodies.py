"""Reading a request's body within its limits, and checking it before any engine is asked."""

import asyncio
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from gateway.config import LimitsConfig
from gateway.context import header
from gateway.errors import ApiError, invalid_request
from gateway.link import link_of

T = TypeVar("T", bound=msgspec.Struct)
MAX_PROMPTS = 2048
"""Prompts or inputs of one request, as many as OpenAI's embeddings take."""
MAX_CHOICES = 128
_SERVICE_TIERS = frozenset({None, "auto", "default", "fast", "flex", "priority", "scale"})
_IN_THREAD_BYTES = 256 * 1024


async def read_json(request: Request, limits: LimitsConfig, timeout_s: float) -> dict[str, Any]:
    """The body as a JSON object.

    Raises `ApiError`: 415 for another content type, 413 over ``limits.max_body_bytes``, 408 slower than
    ``timeout_s`` seconds, 400 for what is no JSON object; and ``ClientDisconnect``.
    """
    content_type = header(request.scope, b"content-type").partition(";")[0].strip().lower()
    if content_type != "application/json":
        shown = content_type[:80] or "none"
        raise ApiError(
            415,
            "invalid_request_error",
            "unsupported_media_type",
            f"The body must be sent with 'Content-Type: application/json', not {shown!r}.",
            headers={"connection": "close"},
        )
    body = await _read(request, limits.max_body_bytes, timeout_s)
    if len(body) > _IN_THREAD_BYTES:
        return await asyncio.to_thread(parse_object, body, limits.max_json_depth)
    return parse_object(body, limits.max_json_depth)


async def _read(request: Request, limit: int, timeout_s: float) -> bytes:
    declared = header(request.scope, b"content-length")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    link = link_of(request.scope)
    if link is not None and link.body_here:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body: bytes = message["body"]
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            408,
            "invalid_request_error",
            "request_timeout",
            f"The body did not arrive within {timeout_s:g} seconds.",
            headers={"connection": "close"},
        ) from None
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    message = f"The body is larger than {limit} bytes, the most that this gateway accepts."
    headers = {"connection": "close"}
    return ApiError(413, "invalid_request_error", "request_too_large", message, headers=headers)


def parse_object(body: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object; raises 400 for anything else, nesting deeper than ``max_depth`` included."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_request(
            f"We could not parse the JSON body of your request: {error}.", code="invalid_json"
        ) from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    if not isinstance(value, dict):
        raise invalid_request("The JSON body must be an object.", code="invalid_json")
    if body.count(b"{") + body.count(b"[") > max_depth and _deeper_than(value, max_depth):
        raise _too_deep(max_depth)
    return value


def _too_deep(max_depth: int) -> ApiError:
    return invalid_request(f"The JSON body is nested deeper than {max_depth} levels.", code="too_deep")


def _deeper_than(value: Any, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        below: list[Any] = []
        for item in level:
            children = item.values() if isinstance(item, dict) else item
            below.extend(child for child in children if isinstance(child, dict | list))
        if not below:
            return False
        level = below
    return True


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class Call(msgspec.Struct, kw_only=True):
    """What all inference calls share. Fields that are not named here are the engine's to judge."""

    model: str
    user: str | None = None
    service_tier: str | None = None


class Generation(Call, kw_only=True):
    """What chat and text completions share."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class ChatCall(Generation, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionCall(Generation, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingCall(Call, kw_only=True):
    """``POST /v1/embeddings``."""

    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None


class TokenizeCall(Call, kw_only=True):
    """``POST /tokenize``: a prompt or messages."""

    prompt: str | None = None
    messages: list[Message] | None = None


class DetokenizeCall(Call, kw_only=True):
    """``POST /detokenize``."""

    tokens: list[int]


def check_call(body: dict[str, Any], kind: type[T]) -> T:
    """The fields that OpenAI defines, with their types checked; raises 400 naming the first that is wrong."""
    model = body.get("model")
    if model is None or model == "":
        raise invalid_request("You must provide a model parameter.", "model", "missing_required_parameter")
    try:
        call = msgspec.convert(body, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _type_fault(str(error)) from None
    _check_values(call)
    return call


def _type_fault(message: str) -> ApiError:
    """msgspec says ``Expected `int`, got `str` - at `$.max_tokens```."""
    what, _, place = message.partition(" - at `$")
    param = place.rstrip("`").lstrip(".") or None
    if what.startswith("Object missing required field"):
        name = what.split("`")[1]
        param = f"{param}.{name}" if param else name
        return invalid_request(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    return invalid_request(f"Invalid type for '{param}': {what.replace('`', '')}.", param, "invalid_type")


def _check_values(call: msgspec.Struct) -> None:
    if isinstance(call, Call) and call.service_tier not in _SERVICE_TIERS:
        named = ", ".join(sorted(tier for tier in _SERVICE_TIERS if tier))
        raise invalid_request(f"'service_tier' must be one of {named}.", "service_tier", "invalid_value")
    if isinstance(call, TokenizeCall) and (call.prompt is None) == (call.messages is None):
        raise invalid_request("Give either 'prompt' or 'messages'.", "prompt", "invalid_value")
    if isinstance(call, ChatCall) and not call.messages:
        raise invalid_request("'messages' must hold at least one message.", "messages", "invalid_value")
    if isinstance(call, CompletionCall):
        _check_prompts(call.prompt, "prompt")
    if isinstance(call, EmbeddingCall):
        _check_prompts(call.input, "input")
        if call.encoding_format not in (None, "float", "base64"):
            raise invalid_request(
                "'encoding_format' must be float or base64.", "encoding_format", "invalid_value"
            )
    if not isinstance(call, Generation):
        return
    if call.stream_options is not None and not call.stream:
        raise invalid_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            "invalid_value",
        )
    for name in ("n", "max_tokens", "max_completion_tokens"):
        value = getattr(call, name)
        # A completion of no tokens is how the prompt alone is scored.
        least = 0 if name == "max_tokens" and isinstance(call, CompletionCall) else 1
        if value is not None and value < least:
            raise invalid_request(f"'{name}' must be at least {least}, not {value}.", name, "invalid_value")
    if call.n is not None and call.n > MAX_CHOICES:
        raise invalid_request(f"'n' must be at most {MAX_CHOICES}.", "n", "invalid_value")


def _check_prompts(prompts: str | list[Any], name: str) -> None:
    """A text, texts, the tokens of one, or the tokens of several: not mixed, not none, and not too many."""
    if not prompts:
        raise invalid_request(f"'{name}' must not be empty.", name, "invalid_value")
    if isinstance(prompts, str):
        return
    kind = type(prompts[0])
    if any(type(prompt) is not kind for prompt in prompts):
        raise invalid_request(
            f"Invalid type for '{name}': texts and tokens cannot be mixed.", name, "invalid_type"
        )
    if kind is not int and len(prompts) > MAX_PROMPTS:
        raise invalid_request(f"'{name}' may hold at most {MAX_PROMPTS} prompts.", name, "invalid_value")
