"""Other names for usage, text and errors in other servers' dialects, and JSON that no standard knows.

A real gateway in front of a server that speaks them (`tests.gateway.dialect_server` says what it stands for).
"""

import json
from typing import Any

import pytest

from tests.gateway.dialect_server import HEAD, TEXT, Script, chunk, events, plain, text_chunks, usage_of
from tests.gateway.dialect_site import EMBEDDINGS, Answer, Site, asking, tokens

JSON = "application/json"
SECRET = "gpu-7.internal:8443"
GOOD = usage_of(7, 5)
_BEGINNING, _END = text_chunks()[:-1], text_chunks()[-1]

# The usage, and what is settled: input, cached, output.
USAGES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "Google: hidden reasoning in the total alone": ({**GOOD, "total_tokens": 500}, (7, 0, 493)),
    "Google: reasoning, and no text yet": ({"prompt_tokens": 7, "total_tokens": 500}, (7, 0, 493)),
    "xAI: reasoning beside the answer": (
        {**GOOD, "total_tokens": 500, "completion_tokens_details": {"reasoning_tokens": 488}},
        (7, 0, 493),
    ),
    "a total, and no input": ({"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 12}, (7, 0, 5)),
    "a total without the input": ({"completion_tokens": 5, "total_tokens": 12}, (7, 0, 5)),
    "Anthropic's names": ({"input_tokens": 7, "output_tokens": 5}, (7, 0, 5)),
    "names of both": ({**GOOD, "input_tokens": 9, "output_tokens": 9}, (7, 0, 5)),
    "DeepSeek: cached tokens": (
        {**GOOD, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 3},
        (7, 4, 5),
    ),
    "Moonshot: cached tokens": ({**GOOD, "cached_tokens": 4}, (7, 4, 5)),
}


def _assert_settled(answer: Answer, settled: tuple[int, int, int]) -> None:
    entry = answer.entry()
    assert (entry["input_tokens"], entry["cached_tokens"], entry["output_tokens"]) == settled
    assert (entry["outcome"], bool(entry["estimated"])) == ("completed", False)


@pytest.mark.parametrize("name", USAGES)
def test_usage_is_read_under_other_names(site: Site, name: str) -> None:
    usage, settled = USAGES[name]
    answer = site.ask(Script(json.dumps(plain(usage)).encode(), content_type=JSON))
    _assert_settled(answer, settled)
    assert tokens(answer.response.json()["usage"]) == (settled[0], settled[2])
    answer = site.ask(Script(events([*_BEGINNING, {**_END, "usage": usage}])), **asking(True))
    _assert_settled(answer, settled)
    assert [tokens(visible) for visible in answer.usages] == [(settled[0], settled[2])]


@pytest.mark.parametrize(
    "more", [{"x_groq": {"usage": GOOD}}, {"choices": [{**plain()["choices"][0], "usage": GOOD}]}]
)
def test_usage_of_a_plain_answer_is_found_where_that_of_a_stream_is(site: Site, more: dict[str, Any]) -> None:
    answer = site.ask(Script(json.dumps({**plain(), **more}).encode(), content_type=JSON))
    _assert_settled(answer, (7, 0, 5))
    assert tokens(answer.response.json()["usage"]) == (7, 5)


def test_embeddings_may_have_a_total_alone(site: Site) -> None:
    body = {"object": "list", "data": [{"embedding": [0.5]}], "usage": {"total_tokens": 7}}
    answer = site.ask(Script(json.dumps(body).encode(), content_type=JSON), EMBEDDINGS)
    assert answer.settled() == ("completed", 7, 0, False)
    assert answer.response.json()["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


_DETAILS = [{"type": "reasoning.text", "text": "twelve bytes", "format": "unknown", "index": 0}]
TEXTS: dict[str, dict[str, Any]] = {
    "an unknown name": {"reasoning_text": "twelve bytes"},
    "OpenRouter's details": {"content": "", "reasoning_details": _DETAILS},
    "OpenRouter's details beside the reasoning": {"reasoning": "twelve bytes", "reasoning_details": _DETAILS},
    "the details first": {"reasoning_details": _DETAILS, "reasoning": "twelve bytes"},
    "a transcript": {"audio": {"id": "audio-1", "transcript": "twelve bytes", "data": "QUJD"}},
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", TEXTS)
def test_text_is_counted_whatever_it_is_called(site: Site, name: str, stream: bool) -> None:
    part = {"role": "assistant", **TEXTS[name]}
    script = Script(json.dumps(plain(message=part)).encode(), content_type=JSON)
    if stream:
        script = Script(events([chunk(part), chunk({}, "stop")]))
    answer = site.ask(script, stream=stream)
    assert answer.settled() == ("completed", answer.input_estimate, 3, True)


# Errors after four words: the event, and the code that the client gets.
ERRORS: dict[str, tuple[bytes, str]] = {
    "Groq": (
        events([{**chunk({}), "x_groq": {"id": "r", "error": f"over capacity at {SECRET}"}}]),
        "engine_failed",
    ),
    "Mistral: a reason without words": (events([chunk({"content": ""}, "error")]), "engine_failed"),
    "TGI": (events([{"error": f"see {SECRET}", "error_type": "generation"}]), "engine_failed"),
    "TGI: busy": (events([{"error": f"see {SECRET}", "error_type": "overloaded"}]), "engine_unavailable"),
    "Google: busy": (
        events([{"error": {"message": SECRET, "status": "RESOURCE_EXHAUSTED"}}]),
        "engine_unavailable",
    ),
    "llama.cpp": (
        b'error: {"code":500,"message":"%b","type":"server_error"}\n\ndata: [DONE]\n\n' % SECRET.encode(),
        "engine_failed",
    ),
    "llama.cpp: busy": (
        b'error: {"code":503,"message":"%b"}\r\n\r\ndata: [DONE]\r\n\r\n' % SECRET.encode(),
        "engine_unavailable",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_within_a_stream_end_it(site: Site, name: str) -> None:
    event, code = ERRORS[name]
    answer = site.ask(Script(events(_BEGINNING[:4], done=False) + event), **asking(True))
    assert answer.chunks[-1]["error"]["code"] == code
    assert "[DONE]" not in answer.response.text
    assert SECRET not in answer.response.text
    assert answer.settled() == ("failed", answer.input_estimate, 4, True)


def test_a_plain_answer_that_an_error_has_finished_has_failed(site: Site) -> None:
    body = json.dumps(plain(GOOD, finish_reason="error")).encode()
    answer = site.ask(Script(body, content_type=JSON))
    assert (answer.response.status_code, answer.response.json()["error"]["code"]) == (502, "engine_failed")


def _strict(data: bytes) -> Any:
    """As clients read it that take nothing but the standard."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(data.decode("utf-8", errors="strict"), parse_constant=refuse)


@pytest.mark.parametrize("raw", [b"NaN", b"-Infinity", b"1e400", b'"\xf0\x9f"', b'"\\ud83d"'])
def test_what_goes_on_is_standard_json(site: Site, raw: bytes) -> None:
    mark = b'"@"'
    body = json.dumps(plain(GOOD, logprobs={"content": [{"token": "x", "logprob": "@"}]})).encode()
    answer = site.ask(Script(body.replace(mark, raw), content_type=JSON))
    assert _strict(answer.response.content)["choices"][0]["message"]["content"] == TEXT
    assert answer.settled() == ("completed", 7, 5, False)
    odd = chunk({"content": ""}, logprobs={"content": [{"token": "x", "logprob": "@"}]})
    stream = events([*_BEGINNING, odd, {**_END, "usage": GOOD}]).replace(mark, raw)
    answer = site.ask(Script(stream), stream=True)
    lines = [line for line in answer.response.content.split(b"\n\n") if line]
    assert lines.pop() == b"data: [DONE]"
    assert all(_strict(line.removeprefix(b"data: "))["id"] == HEAD["id"] for line in lines)
    assert answer.text == TEXT
    assert answer.settled() == ("completed", 7, 5, False)


def test_a_byte_order_mark_before_a_plain_answer(site: Site) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(plain(GOOD)).encode()
    answer = site.ask(Script(body, content_type=JSON))
    assert _strict(answer.response.content)["usage"] == GOOD
    assert answer.settled() == ("completed", 7, 5, False)
