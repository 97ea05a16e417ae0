"""What an engine answers when it refuses or fails, turned into the gateway's own envelope.

The text of an engine that the gateway runs is shown without paths. The text of a server behind a ``url`` is
only logged: it may name hosts, accounts and keys that no tenant may see.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from engines.errors import AdapterUnfit
from engines.wire import UNFIT_ADAPTER
from gateway.http.errors import ApiError, engine_failed, invalid_request, not_supported
from gateway.http.host_paths import without_paths
from gateway.inference.calls import ENGINE_FIELDS, ChatCall, CompletionCall
from gateway.inference.openai_fields import OPENAI_FIELDS
from gateway.inference.retry_after import retry_after_s
from gateway.inference.upstream_json import loads
from gateway.inference.usage_extractor import error_in
from gateway.inference.validation_errors import described, described_details

_logger = logging.getLogger("torpor.exchange")

_MAX_MESSAGE = 1000
_MAX_REPORT = 50_000
_NO_TOOL_GRAMMAR = "Invalid grammar specification: 'triggers'"
"""What vLLM says if the structural tag that it makes of the tools cannot be compiled."""
_LOGGED = 300
_CONTEXT = re.compile(r"maximum context length is (\d{1,9}) tokens")
_PARAM = re.compile(r"[A-Za-z_]\w*(?:\.\w+|\[\d+\])*")
_LONGEST_PARAM = 100

CODES = frozenset(
    {
        # the prompt, and what a content filter has against it
        "context_length_exceeded", "invalid_prompt", "content_filter", "content_policy_violation",
        "bio_policy", "cyber_policy", "misalignment_policy_violation", "data_residency_mismatch",
        # images
        "invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url",
        "invalid_image_mode", "image_too_large", "image_too_small", "image_parse_error",
        "image_content_policy_violation", "image_file_too_large", "image_file_not_found",
        "unsupported_image_media_type", "empty_image_file", "failed_to_download_image",
        # fields of the body
        "missing_required_parameter", "unknown_parameter", "unsupported_parameter", "unsupported_value",
        "invalid_value", "invalid_type", "invalid_json_schema", "invalid_function_parameters",
        "string_above_max_length", "string_below_min_length", "array_above_max_length",
        "array_below_min_length", "empty_array", "integer_above_max_value", "integer_below_min_value",
        "decimal_above_max_value", "decimal_below_min_value",
    }
)  # fmt: skip
"""The codes of a refused request that a client is shown, whichever engine gives them.

Source: ``ResponseError`` and the comments on errors in the official ``openai`` Python client, 3.54, and the
errors that OpenAI's API gives for fields.
"""
_FILTERS = frozenset({"content_filter", "content_policy_violation", "image_content_policy_violation"})

# What servers call a status where they give none.
_STATUS_OF_NAME = {
    "invalid_request_error": 400,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "overloaded_error": 503,
    "overloaded": 503,  # TGI
    "validation": 400,
    "INVALID_ARGUMENT": 400,  # Google
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "service_unavailable": 503,
}
_INVALID = frozenset({400, 413, 422})
_FILTERED = 403
_BUSY = frozenset({408, 409, 425, 429, 503, 529})


class EngineFault(ApiError):
    """The engine answered that it failed: it may be unwell, or unable to serve this one request."""


def refusal(
    status: int, body: bytes, headers: Mapping[str, str] | None = None, *, remote: bool = False
) -> ApiError | AdapterUnfit:
    """The error for an answer of the engine that is not 200. Names of ``headers`` are lower case."""
    try:
        payload = loads(body)
    except ValueError:
        payload = None
    error = error_in(payload) or (payload if isinstance(payload, dict) else {})
    details = None if remote else error.get("detail")
    if isinstance(details, list) and (description := described_details(details)) is not None:
        error = dict(zip(("message", "param"), description, strict=True))
    if not remote and error.get("code") == UNFIT_ADAPTER:
        return AdapterUnfit("the engine withheld its answer: the adapter's canary differs")
    return engine_error(error, status, remote=remote, retry_s=retry_after_s(headers or {}))


def engine_error(
    error: Mapping[str, Any], status: int | None = None, *, remote: bool = False, retry_s: int = 1
) -> ApiError:
    """The error for an engine's error object; ``status`` is the answer's, else what the object says.

    ``retry_s``: seconds after which a busy server wants to be asked again.
    """
    status = status or _status_in(error)
    code = _code_in(error)
    if remote:
        _logger.warning(
            "the model's server refused: status %d, code %r, %r",
            status,
            error.get("code"),
            str(error.get("message") or error.get("detail"))[:_LOGGED],
        )
    if status in _INVALID or (status == _FILTERED and code in _FILTERS):
        return _invalid(error, code, remote=remote)
    if status == 501:
        return not_supported("What this request asks for")
    if status in _BUSY:
        return ApiError(
            503,
            "server_error",
            "engine_unavailable",
            f"The engine is overloaded. Send the request again in {retry_s} s.",
            headers={"retry-after": str(retry_s)},
        )
    return _misconfigured() if remote and 300 <= status < 500 else EngineFault(**vars(engine_failed()))


def _status_in(error: Mapping[str, Any]) -> int:
    """In a stream the object alone tells."""
    for name in ("code", "status", "type"):
        value = error.get(name)
        if isinstance(value, str):
            value = int(value) if re.fullmatch("[1-5][0-9]{2}", value) else _STATUS_OF_NAME.get(value)
        if isinstance(value, int) and 300 <= value < 600:
            return value
    return 400 if _code_in(error) is not None else 500


def _code_in(error: Mapping[str, Any]) -> str | None:
    """OpenAI's code of a refused request, if it is one."""
    code = error.get("code")
    return code if isinstance(code, str) and code in CODES else None


def _invalid(error: Mapping[str, Any], code: str | None, *, remote: bool) -> ApiError:
    text = error.get("message") or error.get("detail")
    text = text if isinstance(text, str) else "The engine refused the request."
    param = error.get("param")
    param = param if isinstance(param, str) else None
    if not remote:
        fields = ENGINE_FIELDS[ChatCall] | ENGINE_FIELDS[CompletionCall]
        text, param = described(without_paths(text[:_MAX_REPORT]), param, fields)
    if code is None and _is_length(text):
        code = "context_length_exceeded"
    if remote:
        param = param if param is not None and _is_field(param) else None
        text = _message(code, param, text)
    elif text.startswith(_NO_TOOL_GRAMMAR):
        text = "A call of a function in 'tools' cannot be demanded: no grammar can be made of its schema."
        code, param = "invalid_function_parameters", "tools"
    return invalid_request(text[:_MAX_MESSAGE], param, code)


def _message(code: str | None, param: str | None, text: str) -> str:
    """In the gateway's own words."""
    if code == "context_length_exceeded":
        context = _CONTEXT.search(text)
        limit = f" of {context[1]} tokens" if context else ""
        return (
            f"The request exceeds the model's maximum context length{limit}. Reduce the input or the answer."
        )
    if code in _FILTERS:
        return "The content filter of the model's server refused the request. Change the prompt."
    because = f" because of '{param}'" if param else ""
    named = f" ({code})" if code else ""
    return f"The model's server refused the request{because}{named}. Sent again, it would be refused again."


def _is_field(param: str) -> bool:
    """Whether it names a field of the request, and not of something else."""
    if len(param) > _LONGEST_PARAM or _PARAM.fullmatch(param) is None:
        return False
    return re.split(r"[.\[]", param, maxsplit=1)[0] in OPENAI_FIELDS


def _is_length(message: str) -> bool:
    return "context length" in message or "max_model_len" in message or "maximum model length" in message


def _misconfigured() -> ApiError:
    """502: the server refuses the gateway itself: its key, its account, or the name of the model."""
    return ApiError(
        502,
        "server_error",
        "engine_failed",
        "The model's server refused the gateway itself, not your key. Only the gateway's operator can help.",
        headers={"x-should-retry": "false"},
    )
