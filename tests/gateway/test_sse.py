"""Events on their way through: whole, unchanged but for usage, and read on the way."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sse import EventSplitter, EventTooLarge, StreamFilter, StreamTap
from metering.types import Usage

ROLE = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def _chunk(text: str, output: int, index: int = 0) -> bytes:
    payload = {
        "id": "c",
        "choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}],
        "usage": {"prompt_tokens": 7, "total_tokens": 7 + output, "completion_tokens": output},
    }
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


CLOSING = (
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)


@given(st.data())
def test_however_the_bytes_arrive_the_events_are_the_same(data: st.DataObject) -> None:
    events = [ROLE, _chunk("a", 1), b": a comment\r\n\r\n", _chunk("b", 2), CLOSING, DONE]
    whole = b"".join(events)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))) | {0, len(whole)})
    splitter = EventSplitter()
    seen = [event for start, end in pairwise(cuts) for event in splitter.feed(whole[start:end])]
    assert b"".join(seen) == whole
    assert all(event.endswith((b"\n\n", b"\r\n\r\n")) for event in seen)


def test_an_event_without_an_end_is_given_up() -> None:
    splitter = EventSplitter()
    with pytest.raises(EventTooLarge):
        for _ in range(20):
            splitter.feed(b"x" * 1024 * 1024)


def test_usage_is_taken_out_unless_asked_for() -> None:
    tap = StreamTap(include_usage=False, continuous=False)
    forwarded = tap.pass_on(_chunk('"usage":{"x":1}', 1))
    assert b'"usage":{"prompt' not in forwarded
    assert (
        json.loads(forwarded.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == '"usage":{"x":1}'
    )
    assert tap.pass_on(CLOSING) == b""
    assert tap.seen == Usage(input_tokens=7, cached_tokens=4, output_tokens=5)


def test_the_closing_usage_stays_when_asked_for() -> None:
    tap = StreamTap(include_usage=True, continuous=False)
    assert b"usage" not in tap.pass_on(_chunk("a", 1))
    assert tap.pass_on(CLOSING) == CLOSING


def test_continuous_usage_stays_on_every_chunk() -> None:
    tap = StreamTap(include_usage=True, continuous=True)
    chunk = _chunk("a", 1)
    assert tap.pass_on(chunk) == chunk


def test_choices_are_counted_apart_and_summed() -> None:
    tap = StreamTap(include_usage=False, continuous=False)
    for event in (_chunk("a", 1), _chunk("b", 1, index=1), _chunk("c", 2, index=1), _chunk("d", 3)):
        tap.pass_on(event)
    assert tap.seen == Usage(input_tokens=7, output_tokens=5)


def test_an_engines_error_and_its_done_are_kept_back() -> None:
    tap = StreamTap(include_usage=False, continuous=False)
    assert tap.pass_on(b'data: {"error": {"message": "no", "code": 500}}\n\n') == b""
    assert tap.pass_on(DONE) == b""
    assert tap.error == {"message": "no", "code": 500}


def test_the_space_after_the_colon_may_be_missing() -> None:
    tap = StreamTap(include_usage=False, continuous=False)
    assert tap.pass_on(b'data:{"error":{"message":"no"}}\n\n') == b""
    assert tap.pass_on(b"data:[DONE]\n\n") == b""
    assert tap.error == {"message": "no"}
    assert tap.done


@given(st.text(), st.integers(0, 10**6))
def test_text_comes_through_whatever_it_holds(text: str, output: int) -> None:
    tap = StreamTap(include_usage=False, continuous=False)
    forwarded = json.loads(tap.pass_on(_chunk(text, output)).removeprefix(b"data: "))
    assert forwarded["choices"][0]["delta"]["content"] == text
    assert "usage" not in forwarded
    assert tap.seen.output_tokens == output


def _vllm(text: str, usage: object, index: int = 0) -> bytes:
    payload = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}],
        **({} if usage is ... else {"usage": usage}),
    }
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def _counts(output: int) -> dict[str, object]:
    details = {"cached_tokens": 3}
    return {"prompt_tokens": 7, "completion_tokens": output, "prompt_tokens_details": details}


EVENTS = st.one_of(
    st.builds(_vllm, st.text(), st.one_of(st.none(), st.just(...), st.builds(_counts, st.integers(0, 99)))),
    st.sampled_from(
        [
            CLOSING,
            DONE,
            ROLE,
            b": a comment\n\n",
            b": one of old\r\n\r\n",
            b'data: {"id":"c","usage": {"prompt_tokens":1,"completion_tokens":2},"choices":[]}\n\n',
            b'data: {"id":"c","choices":[{"index":0}], "usage": {"completion_tokens":9}}\n\n',
            b'data: {"error": {"message": "no", "code": 500}}\n\n',
            b'data:{"id":"x","choices":[{"index":0,"text":"t"}]}\n\n',
        ]
    ),
)


@given(st.lists(EVENTS, max_size=12), st.booleans(), st.booleans(), st.booleans(), st.data())
def test_the_filter_does_with_many_events_what_is_done_with_each(
    events: list[bytes], include_usage: bool, continuous: bool, several: bool, data: st.DataObject
) -> None:
    whole = b"".join(events)
    tap = StreamTap(include_usage=include_usage, continuous=continuous)
    expected = b"".join(tap.pass_on(event) for event in EventSplitter().feed(whole))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=5)) | {0, len(whole)})
    filtered = StreamFilter(include_usage=include_usage, continuous=continuous, several=several)
    seen = b"".join(filtered.feed(whole[start:end]) for start, end in pairwise(cuts))
    assert seen == expected
    assert (filtered.tap.seen, filtered.tap.done, filtered.tap.error) == (tap.seen, tap.done, tap.error)


def test_the_filter_gives_up_an_event_without_an_end() -> None:
    filtered = StreamFilter(include_usage=False, continuous=False, several=False)
    with pytest.raises(EventTooLarge):
        for _ in range(20):
            filtered.feed(b"x" * 1024 * 1024)
