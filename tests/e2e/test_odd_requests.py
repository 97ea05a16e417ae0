"""Requests that no client should send, at the real engine: each is answered, and the engine stays well."""

import json
from typing import Any

import pytest

from tests.process import CHAT_MODEL, Gateway

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}
MESSAGES = [{"role": "user", "content": "Hello"}]


def _format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def _constraint(**constraint: Any) -> dict[str, Any]:
    return {"structured_outputs": constraint}


_LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "top_k of 80 bits": ({"top_k": 2**80}, "top_k"),
    "seed of 64 bits": ({"seed": 2**63}, "seed"),
    "min_tokens of 70 bits": ({"min_tokens": 2**70}, "min_tokens"),
    "a member of 70 bits": (
        {"messages": [{"role": "user", "content": "a", "x": [2**70]}]},
        "messages[0].x[0]",
    ),
    "a bias of an unknown token": ({"logit_bias": {"1000000": 1}}, "logit_bias"),
    "a bias of no token": ({"logit_bias": {"a": 1}}, "logit_bias"),
    "10,000 stops": ({"stop": [f"s{number}" for number in range(10_000)]}, "stop"),
    "an empty stop": ({"stop": ""}, "stop"),
    "an empty bad word": ({"bad_words": [""]}, "bad_words[0]"),
    "a bad word of no token": ({"bad_words": [" "]}, "bad_words"),
    "too many bad words": ({"bad_words": [f"w{number}" for number in range(5000)]}, "bad_words"),
    "a negative top_k": ({"top_k": -5}, "top_k"),
    "min_tokens beyond max_tokens": ({"min_tokens": 10}, "min_tokens"),
    "prompt_logprobs in a stream": ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    "100 logprobs": ({"logprobs": True, "top_logprobs": 100}, "top_logprobs"),
    "two constraints": (_constraint(choice=["a"], regex="a"), "structured_outputs"),
    "no constraint": (_constraint(), "structured_outputs"),
    "a constraint that is a list": ({"structured_outputs": [1]}, "structured_outputs"),
    "a grammar of nothing": (_constraint(grammar="root ::= root"), "structured_outputs"),
    "a broken grammar": (_constraint(grammar="root ::= ((("), "structured_outputs"),
    "a broken pattern": (_constraint(regex="("), "structured_outputs"),
    "a recursive schema": (_format({"$ref": "#"}), "response_format.json_schema.schema"),
    "a recursive definition": (_format(_LOOP), "response_format.json_schema.schema"),
    "an unknown type": (_format({"type": "wizard"}), "response_format"),
    "a pattern of a schema": (_format({"type": "string", "pattern": "("}), "response_format"),
    "an impossible schema": (_format({"type": "integer", "minimum": 2, "maximum": 1}), "response_format"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "an unknown format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "allowed tokens out of range": ({"allowed_token_ids": [10**6]}, "allowed_token_ids"),
    "no allowed tokens": ({"allowed_token_ids": []}, "allowed_token_ids"),
    "a stop token out of range": ({"stop_token_ids": [2**31]}, "stop_token_ids[0]"),
    "a repetition penalty of 0": ({"repetition_penalty": 0}, "repetition_penalty"),
    "a stream interval of 70 bits": ({"stream_interval": 2**70}, "stream_interval"),
    "an endless pattern size": (
        {"repetition_detection": {"max_pattern_size": 2**40, "min_count": 2}},
        "repetition_detection.max_pattern_size",
    ),
    "truncation to nothing": ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    "a thinking budget": ({"thinking_token_budget": 2**62}, "thinking_token_budget"),
    "a template": ({"chat_template": "{% for i in range(10**9) %}a{% endfor %}"}, "chat_template"),
    "options of media": ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "messages[0].content[0]",
    ),
}
SERVED: dict[str, dict[str, Any]] = {
    "a huge bias": {"logit_bias": {"5": 1e300}},
    "a stop of a megabyte": {"stop": "a" * 1_000_000},
    "a pattern that backtracks": _constraint(regex="(a+)+$"),
    "nested repetitions": _constraint(regex="((a{0,100}){0,100}){0,100}"),
    "a reference to elsewhere": _format({"$ref": "http://example.com/a"}),
    "a recursive list": _format({"type": "array", "items": {"$ref": "#"}}),
    "a tiny temperature": {"temperature": 1e-310},
    "a huge penalty": {"repetition_penalty": 1e30},
    "no nucleus": {"top_p": 0},
    "an unknown field": {"wizard": {"a": 1}},
    "arguments of a call that are not JSON": {
        "messages": [
            *MESSAGES,
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
                    for arguments in (
                        '{"a',
                        "",
                        "[1]",
                        '{"a": NaN}',
                        '{"a": "\\ud83d\\ude00"}',
                        f'{{"a": "{"1" * 5000}"}}',
                    )
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]
    },
    "a message as it was answered": {
        "messages": [
            *MESSAGES,
            {"role": "assistant", "content": "Hi", "refusal": None, "audio": None, "tool_calls": None},
            *MESSAGES,
        ]
    },
}


def _post(gateway: Gateway, path: str, fields: dict[str, Any]) -> Any:
    body = {"model": CHAT_MODEL, "max_tokens": 3, **fields}
    with gateway.http() as http:
        return http.post(path, content=json.dumps(body).encode(), headers=JSON)


def _wakes(gateway: Gateway) -> int:
    with gateway.http(gateway.admin_key) as http:
        engines = http.get("/v1/torpor/engines").json()["data"]
    (engine,) = [engine for engine in engines if engine["id"] == CHAT_MODEL]
    return sum(wake["from"] == "cold" for wake in engine["wakes"])


@pytest.fixture(scope="module")
def awake(gateway: Gateway) -> int:
    """How often the engine has been started, by the first request at the latest."""
    assert _post(gateway, CHAT, {"messages": MESSAGES}).status_code == 200
    return _wakes(gateway)


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_request_is_refused_by_name(gateway: Gateway, awake: int, name: str) -> None:
    fields, param = REFUSED[name]
    response = _post(gateway, CHAT, {"messages": MESSAGES, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "\n" not in error["message"]
    assert "--" not in error["message"]
    assert _post(gateway, CHAT, {"messages": MESSAGES}).status_code == 200
    assert _wakes(gateway) == awake


@pytest.mark.usefixtures("awake")
@pytest.mark.parametrize("prompt", [[10**6], [[1], [10**6]], [""], ["Hello", ""]])
def test_a_prompt_that_no_model_could_read_is_refused_by_name(gateway: Gateway, prompt: Any) -> None:
    response = _post(gateway, TEXT, {"prompt": prompt})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("name", SERVED)
def test_an_odd_request_is_served(gateway: Gateway, awake: int, name: str) -> None:
    response = _post(gateway, CHAT, {"messages": MESSAGES, **SERVED[name]})
    assert response.status_code == 200, response.text
    assert _wakes(gateway) == awake


@pytest.mark.usefixtures("awake")
def test_a_failure_in_a_stream_is_not_offered_for_a_retry(gateway: Gateway) -> None:
    response = _post(
        gateway, CHAT, {"messages": MESSAGES, "stream": True, **_constraint(grammar="root ::= root")}
    )
    last = json.loads(response.text.rstrip().rpartition("data: ")[2])
    assert (last["error"]["code"], last["error"]["param"]) == ("invalid_value", "structured_outputs")


@pytest.mark.usefixtures("awake")
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_every_nullable_field_may_be_null(gateway: Gateway, path: str) -> None:
    names = (
        "frequency_penalty logit_bias logprobs n presence_penalty seed stop stream stream_options "
        "temperature top_p user service_tier top_k min_p min_tokens bad_words ignore_eos length_penalty "
        "stop_token_ids echo skip_special_tokens structured_outputs response_format priority"
    )
    mine = {CHAT: ("messages", MESSAGES, "tools tool_choice"), TEXT: ("prompt", "Hello", "best_of suffix")}
    name, value, more = mine[path]
    nulls = dict.fromkeys(f"{names} {more}".split())
    assert _post(gateway, path, {name: value, **nulls}).status_code == 200


@pytest.mark.usefixtures("awake")
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_greedy_choices_are_equal_and_all_counted(gateway: Gateway, path: str) -> None:
    prompt = {"messages": MESSAGES} if path == CHAT else {"prompt": "Hello", "best_of": 3}
    logprobs: Any = True if path == CHAT else 1
    fields = {**prompt, "n": 3, "temperature": 0, "logprobs": logprobs, "max_tokens": 4}
    answer = _post(gateway, path, fields).json()
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert [choice | {"index": 0} for choice in choices] == [choices[0]] * 3
    assert answer["usage"]["completion_tokens"] == 12

    options = {"include_usage": True}
    response = _post(gateway, path, {**fields, "stream": True, "stream_options": options})
    events = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-2]]
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            piece = choice["text"] if path == TEXT else choice["delta"].get("content", "")
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
    whole = choices[0]["text"] if path == TEXT else choices[0]["message"]["content"]
    assert texts == dict.fromkeys(range(3), whole)
    assert events[-1]["usage"]["completion_tokens"] == 12


@pytest.mark.usefixtures("awake")
@pytest.mark.parametrize(("requested", "used"), [("auto", "default"), ("flex", "flex"), ("fast", "priority")])
def test_the_tier_that_was_used_is_named(gateway: Gateway, requested: str, used: str) -> None:
    for path, prompt in ((CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": "Hello"})):
        assert _post(gateway, path, {**prompt, "service_tier": requested}).json()["service_tier"] == used
        response = _post(gateway, path, {**prompt, "service_tier": requested, "stream": True})
        events = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-2]]
        assert {event["service_tier"] for event in events} == {used}
