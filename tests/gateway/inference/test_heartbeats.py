"""How many comments a waiting stream gets: never more than a client bears, whatever is configured."""

import pytest

from gateway.inference.heartbeats import MOST_COMMENTS, Heartbeats

PROXY_PATIENCE_S = 60.0
"""After so long without a byte nginx closes a connection, unless configured otherwise."""


def _comments(longest_s: float, wait_s: float) -> list[float]:
    """The times of the comments in a wait, by a clock of its own."""
    heartbeats, now, times = Heartbeats(longest_s), 0.5, []
    while now <= wait_s:
        times.append(now)
        pause_s = heartbeats.next_s(now)
        if pause_s is None:
            break
        now += pause_s
    return times


@pytest.mark.parametrize("longest_s", [1.0, 10.0, 600.0, 1200.0, 3600.0, 86_400.0, 1e9, float("inf")])
def test_the_longest_wait_has_at_most_a_hundred_comments(longest_s: float) -> None:
    times = _comments(longest_s, min(longest_s, 1e9))
    assert len(times) <= MOST_COMMENTS
    # go-openai counts a comment and the empty line after it, and gives up after 300.
    assert 2 * len(times) < 300


def test_comments_go_on_until_the_end_of_the_longest_wait() -> None:
    times = _comments(1200.0, 1200.0)
    assert times[-1] > 1200 - PROXY_PATIENCE_S
    assert max(after - before for before, after in zip(times, times[1:], strict=False)) < PROXY_PATIENCE_S


def test_the_first_comments_come_every_second() -> None:
    assert _comments(1200.0, 5.0) == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_a_wait_that_is_longer_than_the_longest_gets_no_more() -> None:
    assert len(_comments(10.0, 1e6)) <= MOST_COMMENTS


def test_several_waits_of_a_request_share_the_comments() -> None:
    heartbeats, waited = Heartbeats(1200.0), 0.0
    sent = 0
    for _ in range(3):  # an engine that was not fit is replaced, and awaited again
        for _ in range(60):
            pause_s = heartbeats.next_s(waited)
            sent += 1
            if pause_s is None:
                assert sent <= MOST_COMMENTS
                return
            waited += pause_s
