"""What counts as text in other servers' dialects, of one choice and of several; the usage of embeddings.

A real gateway in front of a server that speaks them (`tests.gateway.dialect_server` says what it stands for).
"""

import json
from typing import Any

import pytest

from tests.gateway.dialect_server import (
    ABSENT,
    HEAD,
    TEXT,
    WORDS,
    Script,
    chunk,
    events,
    plain,
    text_chunks,
    usage_of,
)
from tests.gateway.dialect_site import COMPLETIONS, EMBEDDINGS, Site, asking, tokens

JSON = "application/json"
GOOD = usage_of(7, 5)


# What counts as text: of a message, or of what is added to one, with the tokens that are estimated.

_LOGPROBS = [{"token": "x", "logprob": -0.5, "bytes": [240], "top_logprobs": []}] * 9
TEXTS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "tool calls": (
        {
            "tool_calls": [
                {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"city":1}'}}
            ]
        },
        {},
        5,
    ),
    "tool calls with an object": (
        {"tool_calls": [{"index": 0, "function": {"name": "weather", "arguments": {"a": 1}}}]},
        {},
        4,
    ),
    "a custom tool": (
        {"tool_calls": [{"index": 0, "custom": {"name": "weather", "input": "twelve bytes!"}}]},
        {},
        5,
    ),
    "a function call": ({"function_call": {"name": "weather", "arguments": "{}"}}, {}, 3),
    "reasoning": ({"reasoning": "twelve bytes"}, {}, 3),
    "reasoning_content": ({"reasoning_content": "twelve bytes"}, {}, 3),
    "reasoning under two names": ({"reasoning": "twelve bytes", "reasoning_content": "twelve bytes"}, {}, 3),
    "a refusal": ({"refusal": "twelve bytes"}, {}, 3),
    "parts": (
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "twelve bytes"}]}]},
        {},
        3,
    ),
    "logprobs without text": ({"content": ""}, {"logprobs": {"content": _LOGPROBS, "refusal": None}}, 9),
    "logprobs beside text": ({"content": "x" * 9}, {"logprobs": {"content": _LOGPROBS}}, 9),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("usage", [ABSENT, usage_of(7, 0)], ids=["absent", "zero"])
@pytest.mark.parametrize("name", TEXTS)
def test_text_of_every_kind_is_counted(site: Site, name: str, usage: Any, stream: bool) -> None:
    part, more, tokens = TEXTS[name]
    if stream:
        script = Script(events([chunk(part, **more), chunk({}, "stop", usage=usage)]))
    else:
        script = Script(json.dumps(plain(usage, message=part, **more)).encode(), content_type=JSON)
    answer = site.ask(script, stream=stream)
    assert answer.response.status_code == 200
    prompt = answer.input_estimate if usage is ABSENT else 7
    assert answer.settled() == ("completed", prompt, tokens, True)


def test_an_answer_without_text_may_have_notokens(site: Site) -> None:
    body = plain(usage_of(7, 0), message={"role": "assistant", "content": ""})
    assert site.ask(Script(json.dumps(body).encode(), content_type=JSON)).settled() == (
        "completed",
        7,
        0,
        False,
    )
    stream = events([chunk({"content": ""}), chunk({}, "stop", usage=usage_of(7, 0))])
    assert site.ask(Script(stream), stream=True).settled() == ("completed", 7, 0, False)


def _completion(usage: Any, text: str = TEXT, finish: str | None = "stop", index: int = 0) -> dict[str, Any]:
    reported = {} if usage is ABSENT else {"usage": usage}
    choice = {"index": index, "text": text, "finish_reason": finish}
    return {**HEAD, "object": "text_completion", "choices": [choice], **reported}


@pytest.mark.parametrize(("usage", "prompt", "output"), [(GOOD, 7, 5), ({}, None, 8), (usage_of(7, 0), 7, 8)])
def test_legacy_completions(site: Site, usage: Any, prompt: int | None, output: int) -> None:
    stream = [_completion(ABSENT, word, None) for word in WORDS] + [_completion(usage, "")]
    answers = [
        site.ask(Script(json.dumps(_completion(usage)).encode(), content_type=JSON), COMPLETIONS),
        site.ask(Script(events(stream)), COMPLETIONS, stream=True),
        site.ask(Script(events(stream, done=False)), COMPLETIONS, stream=True),
    ]
    for answer in answers:
        expected = answer.input_estimate if prompt is None else prompt
        assert answer.settled() == ("completed", expected, output, (prompt, output) != (7, 5))


def test_an_echoed_prompt_is_not_generated(site: Site) -> None:
    """One token after a prompt of several words is possible; what is estimated is what was added."""
    for usage, output, estimated in ((usage_of(7, 1), 1, False), (usage_of(7, 0), 2, True)):
        body = json.dumps(_completion(usage, "@KEY@8 bytes.")).encode()
        answer = site.ask(Script(body, content_type=JSON), COMPLETIONS, echo=True)
        assert answer.settled() == ("completed", 7, output, estimated)


# Several choices.


@pytest.mark.parametrize("done", [False, True], ids=["no end", "DONE"])
@pytest.mark.parametrize(
    ("usages", "output", "estimated"),
    [
        ((ABSENT, ABSENT), 16, True),
        ((usage_of(7, 8), usage_of(7, 16)), 16, False),  # of all choices so far
        ((usage_of(7, 8), usage_of(7, 8)), 16, False),  # of each choice
    ],
)
def test_several_choices(
    site: Site, usages: tuple[Any, Any], output: int, estimated: bool, done: bool
) -> None:
    first, second = text_chunks(0), text_chunks(1)
    ends = [chunk({}, "stop", index=index, usage=usage) for index, usage in enumerate(usages)]
    mixed = [item for pair in zip(first[:-1], second[:-1], strict=True) for item in pair]
    answer = site.ask(Script(events([*mixed, *ends], done=done)), n=2, **asking(True))
    prompt = answer.input_estimate if estimated else 7
    assert answer.settled() == ("completed", prompt, output, estimated)
    assert answer.is_done
    assert [tokens(usage) for usage in answer.usages] == [(prompt, output)]


def test_several_choices_of_a_plain_answer(site: Site) -> None:
    body = plain({})
    body["choices"] = [{**body["choices"][0], "index": index} for index in range(2)]
    answer = site.ask(Script(json.dumps(body).encode(), content_type=JSON), n=2)
    assert answer.settled() == ("completed", answer.input_estimate, 16, True)


# Embeddings.

_VECTORS = {
    "object": "list",
    "model": "far",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}],
}
EMBEDDED: dict[str, tuple[Any, int | None]] = {
    "good": ({"prompt_tokens": 7, "total_tokens": 7}, 7),
    "with output": ({"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}, 7),
    "with output that cannot be": (usage_of(7, 5), 7),
    "floats": ({"prompt_tokens": 7.0, "total_tokens": 7.0}, 7),
    "absent": (ABSENT, None),
    "null": (None, None),
    "empty": ({}, None),
    "zero": ({"prompt_tokens": 0, "total_tokens": 0}, None),
    "text": ({"prompt_tokens": "7"}, None),
    "negative": ({"prompt_tokens": -7, "total_tokens": -7}, None),
    "huge": ({"prompt_tokens": 10**30, "total_tokens": 10**30}, None),
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embeddings_are_never_free(site: Site, name: str) -> None:
    usage, tokens = EMBEDDED[name]
    body = {**_VECTORS, **({} if usage is ABSENT else {"usage": usage})}
    answer = site.ask(Script(json.dumps(body).encode(), content_type=JSON), EMBEDDINGS)
    settled = answer.settled()
    assert settled == ("completed", answer.input_estimate if tokens is None else tokens, 0, tokens is None)
    visible = answer.response.json()
    assert visible["data"] == _VECTORS["data"]
    assert visible["usage"]["prompt_tokens"] == settled[1]


def test_embeddings_without_vectors_have_failed(site: Site) -> None:
    body = json.dumps({"object": "list", "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode()
    answer = site.ask(Script(body, content_type=JSON), EMBEDDINGS)
    assert (answer.response.status_code, answer.settled()) == (502, ("failed", 0, 0, False))
