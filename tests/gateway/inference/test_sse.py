"""Events on their way through: whole, unchanged but for usage, and read on the way."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.inference.estimates import RelayedText
from gateway.inference.sse import EventSplitter, EventTooLarge, StreamFilter, read_event
from gateway.inference.usage_extractor import UsageExtractor
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


def _filter(
    *,
    include_usage: bool = False,
    continuous: bool = False,
    multiple_choices: bool = False,
    remote: bool = False,
) -> StreamFilter:
    extractor = UsageExtractor(
        RelayedText(), include_usage=include_usage, continuous=continuous, remote=remote
    )
    return StreamFilter(extractor, multiple_choices=multiple_choices)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@given(st.data())
def test_however_the_bytes_arrive_the_events_are_the_same(end: bytes, data: st.DataObject) -> None:
    """An end of a line that is cut in two, as CRLF may be, is one end."""
    events = [b"data: a", b": a comment", b"event: x" + end + b"data: b" + end + b"data: c", b"data: d"]
    whole = b"".join(event + end + end for event in events)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))) | {0, len(whole)})
    splitter = EventSplitter()
    seen = [event for start, stop in pairwise(cuts) for event in splitter.feed(whole[start:stop])]
    read = [read_event(event) for event in seen]
    assert [item for item in read if item != (b"", None, False)] == [
        (b"", b"a", False),
        (b"", None, True),
        (b"x", b"b\nc", False),
        (b"", b"d", False),
    ]


@pytest.mark.parametrize(
    ("event", "read"),
    [
        (b"data", (b"", b"", False)),
        (b"data:  two spaces", (b"", b" two spaces", False)),
        (b"data:a\r\ndata:b\rdata: c", (b"", b"a\nb\nc", False)),
        (b"id: 9\nretry: 5\nevent:done\ndata: [DONE]", (b"done", b"[DONE]", False)),
        (b"dataset: no field of ours\n:comment", (b"", None, True)),
        (b" data: a space before the name", (b"", None, False)),
        (b"event: a\nevent: b\ndata: the last one counts", (b"b", b"the last one counts", False)),
    ],
)
def test_fields_are_read_as_whatwg_defines_them(event: bytes, read: tuple[bytes, bytes | None, bool]) -> None:
    assert read_event(event) == read


def test_a_byte_order_mark_is_left_out_at_the_beginning_alone() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n") == [
        b"data: a",
        b"\xef\xbb\xbfdata: b",
    ]


def test_an_event_without_an_end_is_given_up() -> None:
    splitter = EventSplitter()
    with pytest.raises(EventTooLarge):
        for _ in range(20):
            splitter.feed(b"x" * 1024 * 1024)


@pytest.mark.parametrize("remote", [False, True])
def test_usage_is_taken_out_unless_asked_for(remote: bool) -> None:
    filtered = _filter(remote=remote)
    forwarded = filtered.feed(_chunk('"usage":{"x":1}', 1))
    assert b'"usage":{"prompt' not in forwarded
    assert (
        json.loads(forwarded.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == '"usage":{"x":1}'
    )
    assert filtered.feed(CLOSING) == b""
    assert filtered.extractor.seen == Usage(input_tokens=7, cached_tokens=4, output_tokens=5)
    assert filtered.extractor.closing(filtered.extractor.seen, {}) == b""


def test_the_closing_usage_is_the_engines_own_when_it_says_what_is_settled() -> None:
    filtered = _filter(include_usage=True)
    assert b"usage" not in filtered.feed(_chunk("a", 1))
    assert filtered.feed(CLOSING) == b""
    assert filtered.extractor.closing(filtered.extractor.seen, {}) == CLOSING
    settled = Usage(input_tokens=8, output_tokens=9, estimated=True)
    closing = json.loads(filtered.extractor.closing(settled, {}).removeprefix(b"data: "))
    assert closing == {
        "id": "c",
        "choices": [],
        "usage": {
            "prompt_tokens": 8,
            "completion_tokens": 9,
            "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


@pytest.mark.parametrize("remote", [False, True])
def test_continuous_usage_stays_on_every_chunk(remote: bool) -> None:
    chunk = _chunk("a", 1)
    assert _filter(include_usage=True, continuous=True, remote=remote).feed(chunk) == chunk


def test_choices_are_counted_apart_and_summed() -> None:
    filtered = _filter(multiple_choices=True)
    for event in (_chunk("a", 1), _chunk("b", 1, index=1), _chunk("c", 2, index=1), _chunk("d", 3)):
        filtered.feed(event)
    assert filtered.extractor.seen == Usage(input_tokens=7, output_tokens=5)


@pytest.mark.parametrize(("of_all", "second"), [(False, 3), (True, 6)])
def test_the_text_tells_whether_usage_is_of_each_choice_or_of_all(of_all: bool, second: int) -> None:
    filtered = _filter(multiple_choices=True, remote=True)
    filtered.feed(_chunk("twelve bytes", 3) + _chunk("twelve bytes", second, index=1))
    assert filtered.extractor.seen.output_tokens == 6
    assert of_all == (second == 6)


@pytest.mark.parametrize(
    "error",
    [
        b'data: {"error": {"message": "no", "code": 500}}\n\n',
        b'data:{"error":{"message":"no","code":500}}\n\n',
        b'data: {"id":"c","choices":[{"index":0}],"error":{"message":"no","code":500}}\n\n',
        b'event: error\ndata: {"message":"no","code":500}\n\n',
        b'data: {"choices":[{"index":0,"error":{"message":"no","code":500}}]}\n\n',
        b'{"error": {"message": "no", "code": 500}}\n\n',
    ],
)
def test_an_engines_error_and_its_done_are_kept_back(error: bytes) -> None:
    filtered = _filter(remote=True)
    assert filtered.feed(error) == b""
    assert filtered.feed(DONE) == b""
    assert filtered.extractor.error == {"message": "no", "code": 500}


def test_an_error_that_is_a_text_or_not_json_is_an_error() -> None:
    for error, read in (
        (b'data: {"error":"no"}\n\n', {"message": "no"}),
        (b"event: error\ndata: no\n\n", {}),
    ):
        filtered = _filter()
        assert filtered.feed(error) == b""
        assert filtered.extractor.error == read


def test_null_is_not_an_error() -> None:
    chunk = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a"}}],"error":null}\n\n'
    assert _filter().feed(chunk) == chunk


@pytest.mark.parametrize("remote", [False, True])
def test_an_event_that_is_not_json_is_an_error_after_what_came_before(remote: bool) -> None:
    filtered = _filter(remote=remote)
    assert filtered.feed(ROLE + b"data: <html>\n\n") == ROLE
    assert filtered.extractor.error == {"message": "an event that is not JSON"}


def test_what_is_not_a_chunk_is_not_for_the_client() -> None:
    filtered = _filter()
    for event in (b'data: {"type":"ping"}', b"event: ping\ndata: now", b"data: []", b"data", b"id: 9"):
        assert filtered.feed(event + b"\n\n") == b""
    assert filtered.extractor.error is None


def test_comments_are_passed_on_without_their_text_and_not_for_ever() -> None:
    filtered = _filter()
    assert filtered.feed(b": gpu-7.internal is busy\n\n") == b":\n\n"
    assert filtered.feed(b":x\n\n" * 500).count(b":") < 100
    assert filtered.feed(ROLE + b":x\n\n").endswith(b"\n\n:\n\n")


@given(st.booleans(), st.booleans(), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_the_form_of_events_does_not_matter(
    include_usage: bool, continuous: bool, end: bytes, data: st.DataObject
) -> None:
    """Fields that say nothing, other ends of lines, data in several lines: the client sees the same."""
    events = [ROLE, _chunk("a", 1), _chunk("b", 2)]
    plain = _filter(include_usage=include_usage, continuous=continuous)
    expected = plain.feed(b"".join([*events, CLOSING, DONE]))
    odd = b"\xef\xbb\xbf" + b"".join(
        b"id: 9"
        + end
        + b"retry: 1"
        + end
        + event.strip().replace(b'"choices"', end + b'data:"choices"')
        + end
        + end
        for event in [*events, CLOSING]
    )
    odd += b"event: done" + end + b"data: [DONE]"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(odd)), max_size=9)) | {0, len(odd)})
    filtered = _filter(include_usage=include_usage, continuous=continuous, remote=True)
    seen = b"".join(filtered.feed(odd[start:stop]) for start, stop in pairwise(cuts)) + filtered.end()
    assert _payloads(seen) == _payloads(expected)
    assert filtered.extractor.done
    assert filtered.extractor.seen == plain.extractor.seen
    assert _payloads(filtered.extractor.closing(plain.extractor.seen, {})) == _payloads(
        plain.extractor.closing(plain.extractor.seen, {})
    )


def _payloads(events: bytes) -> list[object]:
    """What the events hold; of a comment, the comment."""
    return [
        json.loads(event.removeprefix(b"data: ")) if event.startswith(b"data: ") else event
        for event in events.split(b"\n\n")[:-1]
    ]


@pytest.mark.parametrize("choices", [1, 2])
def test_every_choice_has_to_be_over(choices: int) -> None:
    filtered = _filter(remote=True)
    for index in range(choices):
        assert not filtered.extractor.has_finished(choices)
        filtered.feed(_chunk("a", 1, index))
        assert not filtered.extractor.has_finished(choices)
        filtered.feed(
            b'data: {"id":"c","choices":[{"index":%d,"delta":{},"finish_reason":"stop"}]}\n\n' % index
        )
    assert filtered.extractor.has_finished(choices)


@given(st.text(), st.integers(0, 10**6))
def test_text_comes_through_whatever_it_holds(text: str, output: int) -> None:
    for remote in (False, True):
        filtered = _filter(remote=remote)
        forwarded = json.loads(filtered.feed(_chunk(text, output)).removeprefix(b"data: "))
        assert forwarded["choices"][0]["delta"]["content"] == text
        assert "usage" not in forwarded
        assert filtered.extractor.seen.output_tokens == output


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


@pytest.mark.parametrize("remote", [False, True])
@given(st.lists(EVENTS, max_size=12), st.booleans(), st.booleans(), st.booleans(), st.data())
def test_the_filter_does_with_many_events_what_is_done_with_each(
    remote: bool,
    events: list[bytes],
    include_usage: bool,
    continuous: bool,
    multiple_choices: bool,
    data: st.DataObject,
) -> None:
    """What the fast way and the careful one make of events is the same, but for how JSON is written."""
    whole = b"".join(events)
    careful = _filter(
        include_usage=include_usage, continuous=continuous, multiple_choices=True, remote=remote
    )
    expected = careful.feed(whole)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=5)) | {0, len(whole)})
    filtered = _filter(
        include_usage=include_usage, continuous=continuous, multiple_choices=multiple_choices, remote=remote
    )
    seen = b"".join(filtered.feed(whole[start:end]) for start, end in pairwise(cuts))
    assert _payloads(seen) == _payloads(expected)
    assert (filtered.extractor.seen, filtered.extractor.done) == (
        careful.extractor.seen,
        careful.extractor.done,
    )
    assert filtered.extractor.error == careful.extractor.error


def _relayed(events: list[bytes]) -> tuple[int, bool]:
    """Characters that were read of a remote server's events, which come one by one; whether they ended."""
    relayed = RelayedText()
    filtered = StreamFilter(
        UsageExtractor(relayed, include_usage=False, continuous=False, remote=True), multiple_choices=False
    )
    assert _payloads(b"".join(map(filtered.feed, events)))
    return relayed.characters, filtered.extractor.has_finished(1)


def test_text_that_usage_accounts_for_is_not_read() -> None:
    """Events in vLLM's form are skipped if the usage accounts for them; all others are read."""
    texts = ["", *[" word"] * 50]
    end = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    counted = [_vllm(text, _counts(number)) for number, text in enumerate(texts)]
    assert _relayed([*counted, end]) == (0, True)
    assert _relayed(counted) == (0, False)
    assert _relayed([_vllm(text, _counts(1)) for text in texts]) == (250, False)
    assert _relayed([_vllm(text, _counts(0)) for text in texts]) == (250, False)
    assert _relayed([_vllm(text, ...) for text in texts]) == (250, False)
    assert _relayed([_vllm("a long text" * 9, _counts(number)) for number in range(1, 9)]) == (99 * 8, False)
    long = [*counted[:10], _vllm("a long text" * 9, _counts(10)), *counted[11:]]
    assert _relayed(long) == (99, False)


def test_the_filter_gives_up_an_event_without_an_end() -> None:
    filtered = _filter()
    with pytest.raises(EventTooLarge):
        for _ in range(20):
            filtered.feed(b"x" * 1024 * 1024)
