"""The formats of OpenAI's headers."""

import pytest

from gateway.http.rate_limit_headers import duration, rate_headers
from tenants.limits.admission import Standings
from tenants.limits.gcra import Standing

SECOND = 10**9


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (120 * 10**6, "120ms"),
        (999_999_999, "1s"),
        (SECOND, "1s"),
        (SECOND + 1, "1.001s"),
        (8_640_000_000, "8.64s"),
        (60 * SECOND, "1m0s"),
        (360 * SECOND, "6m0s"),
        (72_172 * 10**6, "1m12.172s"),
        (86_400 * SECOND, "24h0m0s"),
        (3_600 * SECOND + 5 * SECOND, "1h0m5s"),
    ],
)
def test_durations_are_as_openai_writes_them(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text


def test_only_what_is_limited_has_headers() -> None:
    assert rate_headers(Standings()) == {}
    assert rate_headers(Standings(tokens=Standing(150_000, 149_984, 360 * SECOND))) == {
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }
