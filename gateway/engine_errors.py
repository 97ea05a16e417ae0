"""What an engine answers when it refuses or fails, turned into the gateway's own envelope."""

import re
from typing import Any

import msgspec

from engines.errors import UNFIT_ADAPTER, AdapterUnfit
from gateway.calls import ENGINE_FIELDS, ChatCall, CompletionCall
from gateway.errors import ApiError, engine_failed, invalid_request, not_supported
from gateway.validation_errors import described, described_details

_PATH = re.compile(r"(?<![\w:/])/(?:[\w.@+-]+/)+[\w.@+-]*")
_MAX_MESSAGE = 1000
_MAX_REPORT = 50_000
_NO_TOOL_GRAMMAR = "Invalid grammar specification: 'triggers'"
"""What vLLM says if the structural tag that it makes of the tools cannot be compiled."""


class EngineFault(ApiError):
    """The engine answered that it failed: it may be unwell, or unable to serve this one request."""


def refusal(status: int, body: bytes) -> ApiError | AdapterUnfit:
    """The error for an answer of the engine that is not 200."""
    try:
        payload = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        payload = None
    error = payload.get("error", payload) if isinstance(payload, dict) else None
    details = error.get("detail") if isinstance(error, dict) else None
    if isinstance(details, list) and (description := described_details(details)) is not None:
        error = dict(zip(("message", "param"), description, strict=True))
    error = error if isinstance(error, dict) else {}
    if error.get("code") == UNFIT_ADAPTER:
        return AdapterUnfit("the engine withheld its answer: the adapter's canary differs")
    return engine_error(error, status)


def engine_error(error: dict[str, Any], status: int | None = None) -> ApiError:
    """The error for an engine's error object; ``status`` is the answer's, else the object's ``code``."""
    code = error.get("code")
    status = status or (code if isinstance(code, int) else 500)
    param = error.get("param")
    message, param = described(
        _clean(error.get("message") or error.get("detail")),
        param if isinstance(param, str) else None,
        ENGINE_FIELDS[ChatCall] | ENGINE_FIELDS[CompletionCall],
    )
    if status == 400 and message.startswith(_NO_TOOL_GRAMMAR):
        return invalid_request(
            "A call of a function in 'tools' cannot be demanded: no grammar can be made of its schema.",
            "tools",
            "invalid_function_parameters",
        )
    if status in (400, 413, 422):
        named = "context_length_exceeded" if _is_length(message) else None
        return invalid_request(message[:_MAX_MESSAGE], param, named)
    if status == 501:
        return not_supported("What this request asks for")
    if status in (429, 503):
        return ApiError(
            503,
            "server_error",
            "engine_unavailable",
            "The engine is overloaded. Send the request again in a moment.",
            headers={"retry-after": "1"},
        )
    return EngineFault(**vars(engine_failed()))


def _is_length(message: str) -> bool:
    return "context length" in message or "max_model_len" in message or "maximum model length" in message


def _clean(message: Any) -> str:
    text = message if isinstance(message, str) else "The engine refused the request."
    return _PATH.sub("<path>", text[:_MAX_REPORT])
