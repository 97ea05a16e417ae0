"""``x-ratelimit-*`` in OpenAI's formats.

Source: OpenAI's guide to rate limits, "Rate limits in headers": ``x-ratelimit-limit-requests: 60``,
``x-ratelimit-remaining-requests: 59``, ``x-ratelimit-reset-requests: 1s``, ``x-ratelimit-reset-tokens:
6m0s``; the reset is the time until the limit is back at its initial state.
"""

from tenants.limits.admission import Standings

_MS_NS = 10**6


def rate_headers(standings: Standings) -> dict[str, str]:
    """The headers of the tightest limits; none of what is not limited."""
    headers = {}
    for unit, standing in (("requests", standings.requests), ("tokens", standings.tokens)):
        if standing is not None:
            headers[f"x-ratelimit-limit-{unit}"] = str(standing.limit)
            headers[f"x-ratelimit-remaining-{unit}"] = str(standing.remaining)
            headers[f"x-ratelimit-reset-{unit}"] = duration(standing.reset_ns)
    return headers


def duration(nanoseconds: int) -> str:
    """As Go writes it, in whole milliseconds, rounded up: ``120ms``, ``8.64s``, ``6m0s``, ``24h0m0s``."""
    milliseconds = -(-nanoseconds // _MS_NS)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    total_s, rest_ms = divmod(milliseconds, 1000)
    minutes, seconds = divmod(total_s, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{rest_ms:03d}".rstrip("0") if rest_ms else ""
    text = f"{seconds}{fraction}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
