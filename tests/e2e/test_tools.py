"""Tools with the default model and its engine: calls have arguments by their schema, and tokens are exact.

A model of 135 M parameters is too weak to choose well. The tests are about form: calls that are demanded are
there, with an object that satisfies the schema.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from engines.spec import ModelSpec
from gateway.inference.call_checks import check_call, without_nulls
from gateway.inference.calls import ChatCall
from gateway.inference.catalog import load_model
from gateway.inference.token_counts import count_prompts
from gateway.inference.tools import check_tools
from tests.e2e.test_usage import _cached, _totals
from tests.process import CHAT_MODEL, MODELS, QUESTION, Gateway

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30, "description": "Name of the city"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
SUM = {
    "type": "object",
    "properties": {"terms": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 3}},
    "required": ["terms"],
}
PLACE = {
    "type": "object",
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["x"],
        }
    },
    "properties": {"at": {"$ref": "#/$defs/point"}, "kind": {"const": "town"}},
    "required": ["at", "kind"],
}
SKY = {"type": "object", "properties": {"sky": {"enum": ["blue", "grey"]}}, "required": ["sky"]}
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": WEATHER,
    "sum": SUM,
    "place-2": PLACE,
    "now": {"type": "object", "properties": {}},
}
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Rome, in celsius?"}]


def _tool(name: str, **fields: Any) -> dict[str, Any]:
    parameters = {} if name == "now" else {"parameters": SCHEMAS[name]}
    return {
        "type": "function",
        "function": {"name": name, "description": f"To {name}", **parameters, **fields},
    }


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


TOOLS = [_tool(name) for name in SCHEMAS]


def _answer(gateway: Gateway, stream: bool, **fields: Any) -> dict[str, Any]:
    """The text, the calls as names and arguments, the finish reason and the usage of an answer."""
    request = {"model": CHAT_MODEL, "temperature": 0, "max_tokens": 120, "messages": ASKED, **fields}
    client: Any = gateway.client()
    if not stream:
        answer = client.chat.completions.create(**request)
        (choice,) = answer.choices
        calls = [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
        text = choice.message.content or ""
        return {"text": text, "calls": calls, "end": choice.finish_reason, "usage": answer.usage}
    got: dict[str, Any] = {"text": "", "end": None}
    parts: dict[int, list[str]] = {}
    request |= {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(**request):
        got["usage"] = chunk.usage
        for choice in chunk.choices:
            got["text"] += choice.delta.content or ""
            got["end"] = choice.finish_reason or got["end"]
            for call in choice.delta.tool_calls or []:
                pieces = parts.setdefault(call.index, ["", "", ""])
                pieces[0] += call.id or ""
                pieces[1] += call.function.name or ""
                pieces[2] += call.function.arguments or ""
    return {**got, "calls": [tuple(pieces) for pieces in parts.values()]}


def _check_calls(calls: list[tuple[str, str, str]]) -> None:
    assert calls
    for identity, name, arguments in calls:
        assert identity
        value = json.loads(arguments)
        assert isinstance(value, dict)
        Draft202012Validator(SCHEMAS[name]).validate(value)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("strict", [None, False, True])
def test_a_required_call(gateway: Gateway, stream: bool, strict: bool | None) -> None:
    tools = [_tool(name, strict=strict) for name in SCHEMAS]
    answer = _answer(gateway, stream, tools=tools, tool_choice="required")
    _check_calls(answer["calls"])
    assert answer["end"] == "tool_calls"
    assert answer["text"] == ""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_named_call(gateway: Gateway, stream: bool, name: str) -> None:
    """OpenAI ends these with ``stop``."""
    answer = _answer(gateway, stream, tools=TOOLS, tool_choice=_named(name))
    _check_calls(answer["calls"])
    assert [call[1] for call in answer["calls"]] == [name]
    assert answer["end"] == "stop"
    assert answer["text"] == ""


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_where_several_are_not_wanted(gateway: Gateway, stream: bool) -> None:
    answer = _answer(gateway, stream, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    _check_calls(answer["calls"])
    assert len(answer["calls"]) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["auto", None])
def test_the_model_may_answer_in_words(gateway: Gateway, stream: bool, choice: str | None) -> None:
    answer = _answer(gateway, stream, tools=TOOLS, tool_choice=choice, max_tokens=20)
    assert answer["text"] or answer["calls"]
    assert answer["end"] in ("stop", "length", "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
def test_tools_that_must_not_be_called_are_not_in_the_prompt(gateway: Gateway, stream: bool) -> None:
    without = _answer(gateway, stream, messages=QUESTION, max_tokens=8)
    answer = _answer(gateway, stream, messages=QUESTION, max_tokens=8, tools=TOOLS, tool_choice="none")
    assert (answer["text"], answer["calls"]) == (without["text"], [])
    assert answer["usage"].prompt_tokens == without["usage"].prompt_tokens == 37


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tools", [TOOLS, None])
def test_a_conversation_goes_on_with_the_results(
    gateway: Gateway, stream: bool, tools: list[dict[str, Any]] | None
) -> None:
    first = _answer(gateway, stream, tools=TOOLS, tool_choice=_named("get_weather"))
    (identity, name, arguments) = first["calls"][0]
    call = {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": identity, "content": "18 degrees celsius, sunny"},
    ]
    fields = {"messages": messages} if tools is None else {"messages": messages, "tools": tools}
    answer = _answer(gateway, stream, **fields, max_tokens=40)
    assert "18" in answer["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_structured_output_beside_tools(gateway: Gateway, stream: bool) -> None:
    """The answer is a call, or what the format wants."""
    shape = {"type": "json_schema", "json_schema": {"name": "sky", "schema": SKY}}
    alone = _answer(gateway, stream, response_format=shape)
    Draft202012Validator(SKY).validate(json.loads(alone["text"]))
    beside = _answer(gateway, stream, response_format=shape, tools=[_tool("get_weather")])
    if beside["calls"]:
        _check_calls(beside["calls"])
    else:
        Draft202012Validator(SKY).validate(json.loads(beside["text"]))


def test_several_choices_have_calls_of_their_own(gateway: Gateway) -> None:
    client: Any = gateway.client()
    answer = client.chat.completions.create(
        model=CHAT_MODEL,
        messages=ASKED,
        tools=TOOLS,
        tool_choice="required",
        n=2,
        max_tokens=120,
        temperature=0,
    )
    for choice in answer.choices:
        _check_calls(
            [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
        )


def test_a_schema_that_no_grammar_can_follow_is_refused(gateway: Gateway) -> None:
    """Nothing satisfies it. Where no call is demanded, nothing has to."""
    impossible = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 2}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": impossible}}
    body = {"model": CHAT_MODEL, "messages": ASKED, "max_tokens": 4, "tools": [tool]}
    with gateway.http() as http:
        refused = http.post("/v1/chat/completions", json={**body, "tool_choice": "required"})
        answered = http.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools"
    assert answered.status_code == 200


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *ASKED]},
    "tools": {"tools": TOOLS},
    "strict, with a null": {"tools": [_tool("sum", strict=True, description=None)]},
    "none": {"tools": TOOLS, "tool_choice": "none"},
    "required": {"tools": TOOLS, "tool_choice": "required"},
    "results": {
        "tools": TOOLS,
        "messages": [
            *ASKED,
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "sum", "arguments": '{"terms":[1,2]}'},
                    },
                    {"id": "2", "type": "function", "function": {"name": "now", "arguments": "no JSON"}},
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "3"}]},
            {"role": "tool", "tool_call_id": "2", "content": "noon: 12 °C"},
        ],
    },
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_the_gateway_counts_the_prompt_that_the_engine_reads(gateway: Gateway, case: str) -> None:
    request = {"model": CHAT_MODEL, "messages": ASKED, **CONVERSATIONS[case]}
    client: Any = gateway.client()
    answer = client.chat.completions.create(**request, max_tokens=1)
    model = load_model(ModelSpec(id=CHAT_MODEL, source=MODELS / CHAT_MODEL, tool_parser="hermes"), 1)
    body = without_nulls(request)
    call = check_call(body, ChatCall)
    check_tools(call, body, model)
    counted = count_prompts(model, call, body)
    assert counted.total == answer.usage.prompt_tokens


def test_every_token_of_a_call_is_in_the_ledger(gateway: Gateway, tmp_path: Path) -> None:
    project = gateway.torpor("project", "create", "tools-test").stdout.strip()
    key = gateway.torpor("key", "create", "--project", project).stdout.strip()
    since = int(time.time()) - 5
    client: Any = gateway.client(key)
    request: dict[str, Any] = {"model": CHAT_MODEL, "messages": ASKED, "tools": TOOLS, "max_tokens": 24}
    usages = []
    for choice in ("required", _named("sum"), "auto", "none"):
        usages.append(client.chat.completions.create(**request, tool_choice=choice).usage)
        *_, last = client.chat.completions.create(
            **request, tool_choice=choice, stream=True, stream_options={"include_usage": True}
        )
        usages.append(last.usage)
    assert _totals(gateway, project, since) == {
        "input_tokens": sum(usage.prompt_tokens for usage in usages),
        "output_tokens": sum(usage.completion_tokens for usage in usages),
        "input_cached_tokens": sum(_cached(usage) for usage in usages),
        "num_model_requests": len(usages),
    }
