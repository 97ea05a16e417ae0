"""The one table that turns what the other folders raise into HTTP."""

import math

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engines.errors import (
    AdapterGone,
    AdapterRejected,
    EngineBroken,
    EngineUnavailable,
    HostClosing,
    SnapshotFailed,
    UnknownModel,
    UnsupportedTier,
)
from gateway.http.context import record_of
from gateway.http.errors import (
    NO_RETRY,
    ApiError,
    engine_failed,
    internal_error,
    invalid_request,
    model_not_found,
    shutting_down,
    storage_unavailable,
)
from metering.errors import InvalidQuery
from metering.prices import DOLLAR
from tenants.errors import (
    BudgetExceeded,
    Conflict,
    InvalidCredential,
    InvalidValue,
    IssuerUnavailable,
    NotFound,
    QueueFull,
    QueueTimeout,
    QuotaExceeded,
    RateLimitExceeded,
    RequestTooLarge,
    StorageUnavailable,
)
from tenants.limits.budgets import CENT


def _issuer_unavailable() -> ApiError:
    return ApiError(
        503,
        "server_error",
        "issuer_unavailable",
        "The keys of this token's issuer cannot be read now. Send the request again later.",
        headers={"retry-after": "5"},
    )


_CREDENTIAL_MESSAGES = {
    "missing": "No API key was provided. Send it as 'Authorization: Bearer YOUR_KEY'.",
    "unknown": "Incorrect API key provided.",
    "expired": "The API key provided has expired.",
    "revoked": "The API key provided has been revoked.",
    "archived": "The project or organization of the API key provided is archived.",
}


def _credential(error: InvalidCredential) -> ApiError:
    """With the challenge of RFC 6750, section 3, which has no error where there was no credential."""
    message = (
        _CREDENTIAL_MESSAGES[error.reason]
        if error.shown_detail is None
        else f"Invalid token: {error.shown_detail}."
    )
    challenge = "Bearer" if error.reason == "missing" else 'Bearer error="invalid_token"'
    headers = {"www-authenticate": challenge}
    return ApiError(401, "authentication_error", "invalid_api_key", message, headers=headers)


def _unavailable(error: EngineUnavailable) -> ApiError:
    headers = {"retry-after": str(max(1, round(error.retry_after_s)))}
    return ApiError(503, "server_error", "engine_unavailable", str(error), headers=headers)


def _rate_limited(error: RateLimitExceeded) -> ApiError:
    seconds = max(1, math.ceil(error.retry_after_s))
    message = (
        f"Rate limit reached for {error.name}: limit {error.limit}, remaining {error.remaining}, requested "
        f"{error.requested}. Please try again in {seconds}s."
    )
    headers = {"retry-after": str(seconds)}
    return ApiError(429, "rate_limit_error", "rate_limit_exceeded", message, headers=headers)


def _too_large(error: RequestTooLarge) -> ApiError:
    message = (
        f"Request too large for {error.name}: limit {error.limit}, requested {error.requested}. "
        "It exceeds the limit on its own; shorten the input."
    )
    return ApiError(429, "rate_limit_error", "rate_limit_exceeded", message, headers=NO_RETRY)


def _over_budget(error: BudgetExceeded) -> ApiError:
    """The organization's own figures are not for each of its projects to see."""
    reset = ""
    if error.whose == "project":
        running = f" and {_dollars(error.reserved)} set aside for running requests" if error.reserved else ""
        reset = f" of {_dollars(error.limit_cents * CENT)}, with {_dollars(error.spent)} spent{running}"
    message = (
        f"The monthly spend limit of the {error.whose}{reset} does not cover this request, which may cost up "
        f"to {_dollars(error.requested)}. Please raise the limit, or ask for fewer tokens with max_tokens."
    )
    return ApiError(429, "insufficient_quota", "insufficient_quota", message, headers=NO_RETRY)


def _dollars(picodollars: int) -> str:
    """Rounded up to a millionth of a dollar."""
    cents, rest = divmod(-(-picodollars * 10**6 // DOLLAR), 10**4)
    fraction = f"{cents % 100:02d}{rest:04d}".rstrip("0").ljust(2, "0")
    return f"${cents // 100}.{fraction}"


def _over_quota(error: QuotaExceeded) -> ApiError:
    message = (
        f"Your project has {error.used} of at most {error.limit} {error.name}, and this upload needs "
        f"{error.requested} more. Delete some first."
    )
    return ApiError(429, "insufficient_quota", "insufficient_quota", message, headers=NO_RETRY)


def _queue_full(error: QueueFull) -> ApiError:
    message = (
        f"Your project already has {error.limit} requests queued for this model, the maximum. "
        f"Retry in {error.retry_after_s:.0f} seconds or send fewer requests at once."
    )
    headers = {"retry-after": f"{error.retry_after_s:.0f}"}
    return ApiError(429, "rate_limit_error", "queue_full", message, headers=headers)


def _queue_timeout(error: QueueTimeout) -> ApiError:
    waited = f"{error.waited_s:g} seconds"
    message = f"The request has waited {waited} in the queue of this model. Retry later."
    headers = {"retry-after": f"{error.retry_after_s:.0f}"}
    return ApiError(503, "server_error", "queue_timeout", message, headers=headers)


def translate(error: Exception) -> ApiError:  # noqa: C901 - a table, in the order of the classes
    """What the error of another folder is on the wire.

    An error that the table does not know is a fault of the gateway's own: 500 ``internal_error``.
    """
    match error:
        case ApiError():
            return error
        case HostClosing():
            return shutting_down()
        case EngineUnavailable():
            return _unavailable(error)
        case AdapterGone():
            return model_not_found(error.name)
        case EngineBroken() | AdapterRejected():
            return engine_failed()
        case SnapshotFailed():  # only the root key can ask for one: it is told the cause
            message = f"The snapshot could not be made: {error}"
            return ApiError(500, "server_error", "snapshot_failed", message, headers=NO_RETRY)
        case UnknownModel():
            return model_not_found(error.model_id)
        case UnsupportedTier():
            return invalid_request(str(error), "tier", "unsupported_tier")
        case InvalidCredential():
            return _credential(error)
        case IssuerUnavailable():
            return _issuer_unavailable()
        case InvalidValue() | InvalidQuery():
            return invalid_request(error.message, error.param, "invalid_value")
        case Conflict():
            return invalid_request(str(error), code="already_exists")
        case NotFound():
            return ApiError(404, "invalid_request_error", "not_found", str(error))
        case RateLimitExceeded():
            return _rate_limited(error)
        case RequestTooLarge():
            return _too_large(error)
        case BudgetExceeded():
            return _over_budget(error)
        case QuotaExceeded():
            return _over_quota(error)
        case QueueFull():
            return _queue_full(error)
        case QueueTimeout():
            return _queue_timeout(error)
        case StorageUnavailable():
            return storage_unavailable()
        case HTTPException():
            headers = dict(error.headers or {})
            message = f"{error.detail}."
            return ApiError(
                error.status_code, "invalid_request_error", "invalid_request", message, headers=headers
            )
        case _:
            return internal_error()


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's exception handler for everything that an endpoint raises."""
    api_error = translate(error)
    record_of(request.scope).code = api_error.code
    return api_error.response()
