"""What browsers of other origins may do: nothing, but for those that are configured."""

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

_SHOWN = (
    "x-request-id",
    "openai-processing-ms",
    "server-timing",
    "x-torpor-engine",
    "retry-after",
    "x-should-retry",
    *(
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    ),
)


def cors(origins: tuple[str, ...]) -> list[Middleware]:
    """Answers preflights of these origins (``*`` for any); no cookies, credentials are in a header."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_SHOWN,
            max_age=600,
        )
    ]
