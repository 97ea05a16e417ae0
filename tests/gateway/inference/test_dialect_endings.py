"""How answers end in other servers' dialects: without an end, cut, with an error, refused.

A real gateway in front of a server that speaks them (`tests.gateway.dialect_server` says what it stands for).
"""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.gateway.dialect_server import ABSENT, TEXT, Script, chunk, events, text_chunks, usage_of
from tests.gateway.dialect_site import Site, asking, tokens

JSON = "application/json"
SECRET = "gpu-7.internal:8443"
GOOD = usage_of(7, 5)
_BEGINNING, _END = text_chunks()[:-1], text_chunks()[-1]

# How streams end.


@pytest.mark.parametrize("include", [False, True], ids=["without", "include_usage"])
@pytest.mark.parametrize("usage", [GOOD, ABSENT], ids=["usage", "no usage"])
def test_a_stream_that_ends_properly_needs_no_done(site: Site, usage: Any, include: bool) -> None:
    reported = {} if usage is ABSENT else {"usage": usage}
    answer = site.ask(Script(events([*_BEGINNING, {**_END, **reported}], done=False)), **asking(include))
    assert (answer.text, answer.is_done) == (TEXT, True)
    settled = (answer.input_estimate, 8, True) if usage is ABSENT else (7, 5, False)
    assert answer.settled() == ("completed", *settled)
    assert [tokens(item) for item in answer.usages] == ([settled[:2]] if include else [])


CUTS: dict[str, tuple[bytes, bool, int]] = {
    "an end in the middle": (events(_BEGINNING[:4], done=False), False, 1),
    "an end without a reason": (events(_BEGINNING, done=False), False, 1),
    "a broken connection": (events(_BEGINNING[:4], done=False), True, 1),
    "in the middle of an event": (events(_BEGINNING[:4], done=False) + b'data: {"id":"x","cho', False, 1),
    "one of two choices is over": (events([*_BEGINNING, _END], done=False), False, 2),
    "the second choice has begun": (events([*_BEGINNING, *text_chunks(1)[:3], _END], done=False), False, 2),
    "a reason that is empty": (events([*_BEGINNING, chunk({}, "")], done=False), False, 1),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_stream_that_is_cut_is_an_error_and_is_paid_for(site: Site, name: str) -> None:
    body, cut, choices = CUTS[name]
    answer = site.ask(Script(body, cut=cut), n=choices, **asking(True))
    assert answer.chunks[-1]["error"]["code"] == "engine_failed"
    assert "[DONE]" not in answer.response.text
    outcome, prompt, output, estimated = answer.settled()
    assert (outcome, prompt, estimated) == ("failed", answer.input_estimate, True)
    assert 4 <= output <= 12


def test_nothing_at_all_is_an_error_and_free(site: Site) -> None:
    answer = site.ask(Script(b""), stream=True)
    assert (answer.response.status_code, answer.response.json()["error"]["code"]) == (502, "engine_failed")
    assert answer.settled() == ("failed", 0, 0, False)


# Errors within an answer of status 200.

_UPSTREAM = {"message": f"worker at http://{SECRET}/v1 died", "type": "server_error", "code": 500}
ERRORS: dict[str, tuple[bytes, str]] = {
    "an error": (b"data: %b\n\n" % json.dumps({"error": _UPSTREAM}).encode(), "engine_failed"),
    "a type": (b"event: error\ndata: %b\n\n" % json.dumps(_UPSTREAM).encode(), "engine_failed"),
    "a type and text": (b"event: error\ndata: no route to %b\n\n" % SECRET.encode(), "engine_failed"),
    "a text": (b'data: {"error": "no route to %b"}\n\n' % SECRET.encode(), "engine_failed"),
    "vLLM's former one": (
        b"data: %b\n\n" % json.dumps({"object": "error", **_UPSTREAM}).encode(),
        "engine_failed",
    ),
    "beside choices": (
        b"data: %b\n\n" % json.dumps({**chunk({}, "error"), "error": _UPSTREAM}).encode(),
        "engine_failed",
    ),
    "not JSON": (f"data: <html>{SECRET}</html>\n\n".encode(), "engine_failed"),
    "detail": (b'data: {"detail": "no route to %b"}\n\n' % SECRET.encode(), "engine_failed"),
    "busy": (
        b"data: %b\n\n" % json.dumps({"error": {**_UPSTREAM, "code": "429"}}).encode(),
        "engine_unavailable",
    ),
    "busy by name": (
        b"data: %b\n\n" % json.dumps({"error": {"message": SECRET, "type": "overloaded_error"}}).encode(),
        "engine_unavailable",
    ),
    "a code that is a list": (
        b"data: %b\n\n" % json.dumps({"error": {**_UPSTREAM, "code": [500]}}).encode(),
        "engine_failed",
    ),
    "filtered": (
        b"data: %b\n\n" % json.dumps({"error": {"message": SECRET, "code": "content_filter"}}).encode(),
        "content_filter",
    ),
}


@pytest.mark.parametrize("begun", [False, True], ids=["at once", "after text"])
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_in_a_stream_is_the_gateways_own(site: Site, name: str, begun: bool) -> None:
    error, code = ERRORS[name]
    before = events(_BEGINNING, done=False) if begun else b""
    answer = site.ask(Script(before + error + b"data: [DONE]\n\n"), stream=True)
    if name == "detail":  # it is not an error for sure, but nothing for the client either
        assert SECRET not in answer.response.text
        return
    visible = answer.chunks[-1] if begun else answer.response.json()
    assert set(visible["error"]) == {"message", "type", "param", "code"}
    assert visible["error"]["code"] == code
    assert SECRET not in answer.response.text
    assert "internal" not in answer.response.text
    assert "[DONE]" not in answer.response.text
    tokens = (answer.input_estimate, 8, True) if begun else (0, 0, False)
    assert answer.settled() == ("failed", *tokens)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "body",
    [
        {"error": _UPSTREAM},
        {"error": f"no route to {SECRET}"},
        {"object": "error", **_UPSTREAM},
        [{"error": _UPSTREAM}],
    ],
)
def test_an_error_with_status_200_is_an_error(site: Site, body: Any, stream: bool) -> None:
    answer = site.ask(Script(json.dumps(body).encode(), content_type=JSON), stream=stream)
    assert (answer.response.status_code, answer.response.json()["error"]["code"]) == (502, "engine_failed")
    assert SECRET not in answer.response.text
    assert answer.settled() == ("failed", 0, 0, False)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{}", b'"text"', b"[" * 10_000, b'{"choices":null}', b"<html>"]
)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_what_is_not_an_answer_is_an_engine_that_failed(site: Site, body: bytes, stream: bool) -> None:
    answer = site.ask(Script(body, content_type=JSON), stream=stream)
    assert (answer.response.status_code, answer.response.json()["error"]["code"]) == (502, "engine_failed")
    assert answer.settled() == ("failed", 0, 0, False)


# Refusals: status, headers and error object; the status, the code and the seconds that the client sees.


def _date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


RETRIES: dict[str, tuple[dict[str, str], int]] = {
    "seconds": ({"Retry-After": "17"}, 17),
    "a fraction": ({"Retry-After": "1.2"}, 2),
    "milliseconds": ({"retry-after-ms": "2500", "Retry-After": "9"}, 3),
    "milliseconds of nonsense": ({"retry-after-ms": "soon", "Retry-After": "9"}, 9),
    "nonsense": ({"Retry-After": "soon"}, 1),
    "negative": ({"Retry-After": "-5"}, 1),
    "zero": ({"Retry-After": "0"}, 1),
    "empty": ({"Retry-After": ""}, 1),
    "absent": ({}, 1),
    "a day": ({"Retry-After": "86400"}, 3600),
    "digits without end": ({"Retry-After": "9" * 1000}, 3600),
    "infinite": ({"Retry-After": "inf"}, 1),
    "a date in the past": ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("name", RETRIES)
def test_a_busy_server_says_when_to_come_back(site: Site, name: str, status: int, stream: bool) -> None:
    headers, seconds = RETRIES[name]
    body = json.dumps({"error": {"message": f"org-123 at {SECRET}", "code": "insufficient_quota"}}).encode()
    answer = site.ask(Script(body, status, headers, JSON), stream=stream)
    assert answer.response.status_code == 503
    assert answer.response.json()["error"]["code"] == "engine_unavailable"
    assert answer.response.headers["retry-after"] == str(seconds)
    assert SECRET not in answer.response.text
    assert answer.settled() == ("failed", 0, 0, False)
    assert answer.entry()["status"] == 503


def test_a_busy_server_may_give_a_date(site: Site) -> None:
    answer = site.ask(Script(b"", 503, {"Retry-After": _date(17)}))
    assert 15 <= int(answer.response.headers["retry-after"]) <= 18


def _refusal(code: Any = None, message: str = f"see {SECRET}", param: Any = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": param, "code": code}}


REFUSALS: dict[str, tuple[int, Any, int, str | None, str | None]] = {
    "a content filter": (400, _refusal("content_filter", param="prompt"), 400, "content_filter", "prompt"),
    "too long": (400, _refusal("context_length_exceeded"), 400, "context_length_exceeded", None),
    "too long by its words": (
        400,
        _refusal(400, "This model's maximum context length is 8192 tokens."),
        400,
        "context_length_exceeded",
        None,
    ),
    "a prompt": (400, _refusal("invalid_prompt"), 400, "invalid_prompt", None),
    "a field": (
        400,
        _refusal("unsupported_value", param="temperature"),
        400,
        "unsupported_value",
        "temperature",
    ),
    "a field within": (
        422,
        _refusal("invalid_type", param="messages[0].content"),
        400,
        "invalid_type",
        "messages[0].content",
    ),
    "a field that is none": (400, _refusal("invalid_value", param=SECRET), 400, "invalid_value", None),
    "a code of its own": (400, _refusal("shard_7_of_gpu_internal"), 400, None, None),
    "a code that is an object": (400, _refusal({"reason": SECRET}), 400, None, None),
    "no object": (400, {"detail": f"see {SECRET}"}, 400, None, None),
    "a text": (400, {"error": SECRET}, 400, None, None),
    "Google's list": (400, [_refusal(400)], 400, None, None),
    "not JSON": (400, None, 400, None, None),
    "too large": (413, _refusal(), 400, None, None),
    "moderated": (403, _refusal("content_policy_violation"), 400, "content_policy_violation", None),
    "its key": (401, _refusal("invalid_api_key"), 502, "engine_failed", None),
    "its money": (402, _refusal(402), 502, "engine_failed", None),
    "its permission": (403, _refusal("unsupported_country_region_territory"), 502, "engine_failed", None),
    "its model": (404, _refusal("model_not_found"), 502, "engine_failed", None),
    "its method": (405, None, 502, "engine_failed", None),
    "a redirection": (307, None, 502, "engine_failed", None),
    "a time-out": (408, None, 503, "engine_unavailable", None),
    "overloaded": (529, None, 503, "engine_unavailable", None),
    "a fault": (500, _refusal("server_error"), 502, "engine_failed", None),
    "a proxy": (504, None, 502, "engine_failed", None),
    "not there": (501, _refusal(), 501, "not_supported", None),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_keeps_what_is_the_tenants_to_know(site: Site, name: str, stream: bool) -> None:
    status, body, visible, code, param = REFUSALS[name]
    content = f"<html>{SECRET}</html>".encode() if body is None else json.dumps(body).encode()
    answer = site.ask(Script(content, status, content_type=JSON), stream=stream)
    error = answer.response.json()["error"]
    assert (answer.response.status_code, error["code"], error["param"]) == (visible, code, param)
    assert SECRET not in answer.response.text
    assert "internal" not in answer.response.text
    assert answer.settled() == ("failed", 0, 0, False)
    assert answer.entry()["status"] == visible
    if name == "too long by its words":
        assert "8192 tokens" in error["message"]
    if 400 <= status < 500 and visible == 502:
        assert answer.response.headers["x-should-retry"] == "false"
