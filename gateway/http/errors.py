"""OpenAI's error envelope, ``{"error": {"message", "type", "param", "code"}}``, and the errors of the gateway
itself.

`gateway.http.translation` turns what the other folders raise into these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.responses import Response

JSON = "application/json"


@dataclass
class ApiError(Exception):
    """An error as a client sees it.

    ``message`` never carries a path, a stack or another tenant's name. ``headers`` are added to the answer.
    """

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def envelope(self) -> dict[str, Any]:
        """The wire form."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The wire form as JSON."""
        return msgspec.json.encode(self.envelope())

    def response(self) -> Response:
        """The answer to a request that has not been answered yet."""
        return Response(self.body(), self.status, self.headers, JSON)

    def event(self) -> bytes:
        """The form that it has in a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"


def invalid_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request cannot be served as it is."""
    return ApiError(400, "invalid_request_error", code, message, param)


def model_not_found(name: str) -> ApiError:
    """404: the same answer for a model that does not exist and for one that the caller may not use."""
    excerpt = name if len(name) <= 128 else name[:128] + "..."
    return ApiError(
        404,
        "invalid_request_error",
        "model_not_found",
        f"The model `{excerpt}` does not exist or you do not have access to it.",
        "model",
    )


NO_RETRY: Mapping[str, str] = {"x-should-retry": "false"}
"""Tells OpenAI's clients, which repeat a 429 and every 5xx, that the same request would fail again."""


def unsupported(message: str) -> ApiError:
    """501: what this gateway does not have."""
    return ApiError(501, "server_error", "not_supported", message, headers=NO_RETRY)


def not_supported(what: str) -> ApiError:
    """501: part of OpenAI's API that this gateway does not have."""
    return unsupported(f"{what} is not supported by this gateway yet.")


def insufficient_scope(message: str) -> ApiError:
    """403: the key is good, but not for this."""
    return ApiError(403, "permission_error", "insufficient_scope", message)


def too_many_failures(retry_after_s: int) -> ApiError:
    """429: the address has sent too many keys that open nothing."""
    return ApiError(
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        f"Too many incorrect API keys came from this address. Try again in {retry_after_s} s.",
        headers={"retry-after": str(retry_after_s)},
    )


def engine_failed() -> ApiError:
    """502: the engine died while it worked on the request."""
    return ApiError(
        502,
        "server_error",
        "engine_failed",
        "The engine failed while it was working on this request. The request may be sent again.",
    )


def request_failed(constraint: str | None = None) -> ApiError:
    """500: an engine that is well failed on this request; 400 if the request's ``constraint`` is why."""
    if constraint is not None:
        message = (
            f"The engine could not generate an answer under the constraint in '{constraint}'. "
            "Please correct or simplify it."
        )
        return invalid_request(message, constraint, "invalid_value")
    return ApiError(
        500,
        "server_error",
        "request_failed",
        "The engine is well but failed on this request: sent again, it would fail again. Please change it.",
        headers={"x-should-retry": "false"},
    )


def shutting_down() -> ApiError:
    """503: the gateway is draining."""
    return ApiError(
        503,
        "server_error",
        "shutting_down",
        "The gateway is shutting down. Send the request again in a moment.",
        headers={"retry-after": "5"},
    )


def internal_error() -> ApiError:
    """500: a fault of the gateway's own; the log has the details."""
    return ApiError(
        500,
        "server_error",
        "internal_error",
        "The gateway failed to handle this request. Its log has the details under the request id.",
    )


def storage_unavailable() -> ApiError:
    """503: the database or the disk fails."""
    return ApiError(
        503,
        "server_error",
        "storage_unavailable",
        "The gateway cannot reach its storage, so nothing can be metered. Send the request again later.",
        headers={"retry-after": "2"},
    )
