"""What other servers' dialects become: the right answer for the client, and the right entry in the ledger.

A real gateway in front of a server that speaks them (`tests.gateway.dialect_server` says what it stands for).
``test_dialect_texts.py`` has what counts as text, ``test_dialect_endings.py`` how answers end.
"""

import json
from typing import Any

import pytest

from tests.gateway.dialect_server import (
    ABSENT,
    HEAD,
    TEXT,
    Script,
    chunk,
    events,
    plain,
    text_chunks,
    usage_of,
)
from tests.gateway.dialect_site import Answer, Site, asking, tokens

JSON = "application/json"
SECRET = "gpu-7.internal:8443"
GOOD = usage_of(7, 5)


# Where usage stands.

_BEGINNING, _END = text_chunks()[:-1], text_chunks()[-1]
_USAGE_ALONE = {**HEAD, "choices": [], "usage": GOOD}
POSITIONS: dict[str, list[dict[str, Any]]] = {
    "last chunk with empty choices": [*_BEGINNING, _END, _USAGE_ALONE],
    "OpenAI: null before": [*({**chunk, "usage": None} for chunk in (*_BEGINNING, _END)), _USAGE_ALONE],
    "with the finish reason": [*_BEGINNING, {**_END, "usage": GOOD}],
    "with the finish reason, and again alone": [*_BEGINNING, {**_END, "usage": GOOD}, _USAGE_ALONE],
    "twice alone": [*_BEGINNING, _END, {**_USAGE_ALONE, "usage": usage_of(7, 4)}, _USAGE_ALONE],
    "on every chunk, the same": [{**chunk, "usage": GOOD} for chunk in (*_BEGINNING, _END)],
    "on every chunk, cumulative": [
        {**chunk, "usage": usage_of(7, min(number, 5))} for number, chunk in enumerate((*_BEGINNING, _END))
    ],
    "on every chunk, zero before the end": [
        *({**chunk, "usage": usage_of(0, 0)} for chunk in _BEGINNING),
        {**_END, "usage": GOOD},
    ],
    "chunk without choices": [*_BEGINNING, _END, {**HEAD, "usage": GOOD}],
    "choices are null": [*_BEGINNING, _END, {**HEAD, "choices": None, "usage": GOOD}],
    "before the end": [*_BEGINNING, _USAGE_ALONE, _END],
    "first of all": [_USAGE_ALONE, *_BEGINNING, _END],
    "prompt at the beginning, output at the end": [
        {**_BEGINNING[0], "usage": {"prompt_tokens": 7}},
        *_BEGINNING[1:],
        {**_END, "usage": {"completion_tokens": 5}},
    ],
    "before the choices": [*_BEGINNING, {"usage": GOOD, **_END}],
    "Moonshot: in the last choice": [
        *_BEGINNING,
        chunk({}, "stop") | {"choices": [{**_END["choices"][0], "usage": GOOD}]},
    ],
    "Groq: in a field of its own": [*_BEGINNING, {**_END, "x_groq": {"id": "req", "usage": GOOD}}],
    "Azure: empty choices at the beginning": [
        {"choices": [], "id": "", "prompt_filter_results": []},
        *_BEGINNING,
        _END,
        _USAGE_ALONE,
    ],
    "floats": [*_BEGINNING, {**_END, "usage": {"prompt_tokens": 7.0, "completion_tokens": 5.0}}],
}


@pytest.mark.parametrize("include", [False, True], ids=["without", "include_usage"])
@pytest.mark.parametrize("position", POSITIONS)
def test_usage_is_found_wherever_it_stands(site: Site, position: str, include: bool) -> None:
    answer = site.ask(Script(events(POSITIONS[position])), **asking(include))
    assert answer.text == TEXT
    assert answer.is_done
    assert answer.settled() == ("completed", 7, 5, False)
    assert [tokens(usage) for usage in answer.usages] == ([(7, 5)] if include else [])
    if include:
        closing = answer.chunks[-1]
        assert closing["choices"] == []
        assert closing["usage"]["total_tokens"] == 12
        assert {name: closing[name] for name in HEAD} == HEAD
    assert all(item["choices"] for item in (answer.chunks[:-1] if include else answer.chunks))
    assert include or "usage" not in answer.response.text


def test_details_of_usage_come_through(site: Site) -> None:
    usage = {**GOOD, "prompt_tokens_details": {"cached_tokens": 4}, "cost": 0.25}
    answer = site.ask(Script(events([*_BEGINNING, {**_END, "usage": usage}])), **asking(True))
    assert answer.usages == [usage]
    assert answer.entry()["cached_tokens"] == 4


def test_more_cached_tokens_than_the_prompt_has_are_not_believed(site: Site) -> None:
    usage = {**GOOD, "prompt_tokens_details": {"cached_tokens": 400}}
    whole = Script(json.dumps(plain(usage)).encode(), content_type=JSON)
    assert site.ask(whole).entry()["cached_tokens"] == 7
    stream = Script(events([*_BEGINNING, {**_END, "usage": usage}]))
    assert site.ask(stream, stream=True).entry()["cached_tokens"] == 7


# How events are framed.


def _framed(end: str, *, before: str = "", colon: str = "data: ", done: str = "data: [DONE]") -> bytes:
    lines = [before + colon + json.dumps(item) for item in [*_BEGINNING, _END, _USAGE_ALONE]] + [
        before + done
    ]
    return "".join(line.replace("\n", end) + end + end for line in lines).encode()


def _in_two_lines(end: str) -> bytes:
    pretty = [json.dumps(item, indent=1).split("\n") for item in [*_BEGINNING, _END, _USAGE_ALONE]]
    lines = [end.join(f"data: {line}" for line in item) for item in pretty]
    return (end * 2).join([*lines, "data: [DONE]", ""]).encode()


def _compact(*, counted: bool = False) -> bytes:
    """Without spaces, as vLLM writes; its text is forwarded without being read if usage accounts for it."""
    chunks = [
        {**item, "usage": usage_of(7, min(number, 5))} if counted else item
        for number, item in enumerate([*_BEGINNING, _END])
    ]
    lines = [json.dumps(item, separators=(",", ":")) for item in [*chunks, _USAGE_ALONE]]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


FRAMES: dict[str, bytes] = {
    "LF": _framed("\n"),
    "vLLM": _compact(),
    "vLLM with usage on every chunk": _compact(counted=True),
    "vLLM with usage on every chunk, and no end": _compact(counted=True).removesuffix(b"data: [DONE]\n\n"),
    "CRLF": _framed("\r\n"),
    "CR": _framed("\r"),
    "no space after the colon": _framed("\n", colon="data:", done="data:[DONE]"),
    "ids": _framed("\n", before="id: 9\n"),
    "types": _framed("\n", before="event: message\n"),
    "ends of another type": _framed("\n", done="event: done\ndata: [DONE]"),
    "an end with an id": _framed("\n", done="id: 9\ndata: [DONE]"),
    "retry, id, type, and an unknown field": _framed("\r\n", before="retry: 1\nid\nevent: x\nfoo: bar\n"),
    "comments within events": _framed("\n", before=f": {SECRET}\n"),
    "comments between events": _framed("\n", before=f": {SECRET}\n\n"),
    "pings": _framed("\n", before='event: ping\ndata: {"type": "ping"}\n\nevent: ping\ndata: now\n\n'),
    "several lines of data": _in_two_lines("\n"),
    "several lines of data with CRLF": _in_two_lines("\r\n"),
    "a byte order mark": b"\xef\xbb\xbf" + _framed("\n"),
    "a byte order mark and CR": b"\xef\xbb\xbf" + _framed("\r"),
    "many empty lines": _framed("\n\n\n"),
    "no empty line at the end": _framed("\n").rstrip(b"\n"),
    "one end of a line at the end": _framed("\r\n").removesuffix(b"\r\n"),
    "spaces around the end": _framed("\n", done="data:  [DONE] "),
    "empty data": _framed("\n", before="data\n\ndata:\n\n"),
}


@pytest.mark.parametrize("include", [False, True], ids=["without", "include_usage"])
@pytest.mark.parametrize("frame", FRAMES)
def test_events_are_read_however_they_are_framed(site: Site, frame: str, include: bool) -> None:
    answer = site.ask(Script(FRAMES[frame]), **asking(include))
    assert answer.text == TEXT
    assert answer.is_done
    assert answer.settled() == ("completed", 7, 5, False)
    assert [tokens(usage) for usage in answer.usages] == ([(7, 5)] if include else [])
    assert SECRET not in answer.response.text


@pytest.mark.parametrize("content_type", [JSON, "text/plain", "text/event-stream;charset=UTF-8", ""])
def test_the_type_of_a_stream_does_not_matter(site: Site, content_type: str) -> None:
    answer = site.ask(Script(FRAMES["LF"], content_type=content_type), stream=True)
    assert (answer.text, answer.is_done) == (TEXT, True)


# What is written for numbers: the value, and what is settled (None: estimated).

_ESTIMATED_OUTPUT = 8  # 31 bytes
VALUES: dict[str, tuple[Any, int | None, int | None]] = {
    "good": (GOOD, 7, 5),
    "without a total": ({"prompt_tokens": 7, "completion_tokens": 5}, 7, 5),
    "integral floats": ({"prompt_tokens": 7.0, "completion_tokens": 5.0}, 7, 5),
    "absent": (ABSENT, None, None),
    "null": (None, None, None),
    "empty": ({}, None, None),
    "text": ("12 tokens", None, None),
    "a list": ([7, 5], None, None),
    "true": (True, None, None),
    "zero": (usage_of(0, 0), None, None),
    "zero floats": ({"prompt_tokens": 0.0, "completion_tokens": 0.0}, None, None),
    "counts that are null": ({"prompt_tokens": None, "completion_tokens": None}, None, None),
    "counts that are text": ({"prompt_tokens": "7", "completion_tokens": "5"}, None, None),
    "counts that are true": ({"prompt_tokens": True, "completion_tokens": True}, None, None),
    "fractions": ({"prompt_tokens": 7.5, "completion_tokens": 5.5}, None, None),
    "negative": (usage_of(-7, -5), None, None),
    "negative output": ({"prompt_tokens": 7, "completion_tokens": -1}, 7, None),
    "no output": (usage_of(7, 0), 7, None),
    "output alone": ({"completion_tokens": 5}, None, 5),
    "input alone": ({"prompt_tokens": 7, "total_tokens": 7}, 7, None),
    "no input": (usage_of(0, 5), None, 5),
    "more than 32 bits": (usage_of(7, 2**40), 7, None),
    "more than 64 bits": (usage_of(10**30, 10**30), None, None),
    "a float of any size": ({"prompt_tokens": 7, "completion_tokens": 1e308}, 7, None),
    "far too few for the text": (usage_of(7, 1), 7, None),
    "a few, but possible": (usage_of(7, 4), 7, 4),
    "many more than the text: hidden reasoning": (usage_of(7, 5000), 7, 5000),
    "a wrong total": ({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 0}, 7, 5),
    "details that are text": ({**GOOD, "prompt_tokens_details": "none"}, 7, 5),
}


def _settled(answer: Answer, name: str) -> tuple[str, int, int, bool]:
    _, prompt, completion = VALUES[name]
    return (
        "completed",
        answer.input_estimate if prompt is None else prompt,
        _ESTIMATED_OUTPUT if completion is None else completion,
        prompt is None or completion is None,
    )


@pytest.mark.parametrize("name", VALUES)
def test_a_plain_answer_is_never_free(site: Site, name: str) -> None:
    answer = site.ask(Script(json.dumps(plain(VALUES[name][0])).encode(), content_type=JSON))
    settled = answer.settled()
    assert settled == _settled(answer, name)
    body = answer.response.json()
    assert body["choices"][0]["message"]["content"] == TEXT
    assert tokens(body["usage"]) == settled[1:3]
    assert body["usage"]["total_tokens"] == sum(settled[1:3])


@pytest.mark.parametrize("position", ["alone", "with the finish reason"])
@pytest.mark.parametrize("name", VALUES)
def test_a_stream_is_never_free(site: Site, name: str, position: str) -> None:
    value = VALUES[name][0]
    reported = {} if value is ABSENT else {"usage": value}
    chunks = [*_BEGINNING, {**_END, **reported}]
    if position == "alone":
        chunks = [*_BEGINNING, _END, {**HEAD, "choices": [], **reported}]
    answer = site.ask(Script(events(chunks)), **asking(True))
    settled = answer.settled()
    assert settled == _settled(answer, name)
    assert answer.text == TEXT
    assert [tokens(usage) for usage in answer.usages] == [settled[1:3]]
    assert answer.chunks[-1]["choices"] == []


@pytest.mark.parametrize("raw", [b"1e400", b"NaN", b"-Infinity", b'"\\ud83d"', b"1" * 5000])
def test_numbers_that_the_standard_does_not_know(site: Site, raw: bytes) -> None:
    body = json.dumps(plain({"prompt_tokens": 7, "completion_tokens": "@"})).encode().replace(b'"@"', raw)
    answer = site.ask(Script(body, content_type=JSON))
    assert answer.settled() == ("completed", 7, _ESTIMATED_OUTPUT, True)
    assert answer.response.json()["choices"][0]["message"]["content"] == TEXT
    closing = json.dumps({**_USAGE_ALONE, "usage": {"prompt_tokens": 7, "completion_tokens": "@"}}).encode()
    stream = events([*_BEGINNING, _END], done=False) + b"data: " + closing.replace(b'"@"', raw) + b"\n\n"
    answer = site.ask(Script(stream + b"data: [DONE]\n\n"), **asking(True))
    assert answer.settled() == ("completed", 7, _ESTIMATED_OUTPUT, True)
    assert tokens(answer.usages[0]) == (7, _ESTIMATED_OUTPUT)


def test_few_tokens_for_a_long_text_are_not_believed(site: Site) -> None:
    text = "word " * 1000
    chunks = [chunk({"content": text}), chunk({}, "stop", usage=usage_of(7, 10))]
    assert site.ask(Script(events(chunks)), stream=True).settled() == ("completed", 7, 1250, True)
