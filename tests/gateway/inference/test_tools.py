"""Tools that cannot be used are refused by name, before any engine is woken for them."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.process import CHAT_MODEL, MODELS, Gateway, running_gateway

PLAIN = "plain"
IGNORANT = "ignorant"
REFUSED = ("tools", "tools_not_supported")
USER = {"role": "user", "content": "What is the weather in Rome?"}


def _function(name: Any = "weather", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


def _parameters(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _chosen(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _call(**changes: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": "{}"}
    return {"id": "call_1", "type": "function", "function": function, **changes}


def _history(call: Any, tool_call_id: Any = "call_1") -> list[dict[str, Any]]:
    answer = {"role": "assistant", "content": None, "tool_calls": call}
    return [USER, answer, {"role": "tool", "content": "sunny", "tool_call_id": tool_call_id}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a model that takes tools, one without a parser, and one whose template ignores tools."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "ignorant.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    source = f'source = "{MODELS / CHAT_MODEL}"'
    models = f"""
[[models]]
id = "{CHAT_MODEL}"
{source}
tool_parser = "hermes"

[[models]]
id = "{PLAIN}"
{source}

[[models]]
id = "{IGNORANT}"
{source}
tool_parser = "hermes"
chat_template = "ignorant.jinja"
"""
    with running_gateway(folder, models) as started:
        yield started


WITHOUT_TOOLS: dict[str, tuple[dict[str, Any], str, str]] = {
    "tools": ({"tools": [_function()]}, *REFUSED),
    "none of them to be called": ({"tools": [_function()], "tool_choice": "none"}, *REFUSED),
    "empty": ({"tools": []}, *REFUSED),
    "choice alone": ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    "called": ({"messages": _history([_call()])}, "messages[1].tool_calls", "tools_not_supported"),
    "result": (
        {"messages": [USER, {"role": "tool", "tool_call_id": "1", "content": "x"}]},
        "messages[1].role",
        "tools_not_supported",
    ),
}

SCHEMA = "tools[0].function.parameters"
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no tool": ({"tools": []}, "tools", "empty_array"),
    "129 tools": (
        {"tools": [_function(f"f{number}") for number in range(129)]},
        "tools",
        "array_above_max_length",
    ),
    "tools of another type": ({"tools": {"name": "weather"}}, "tools", "invalid_type"),
    "a tool of another type": ({"tools": [_function(), "weather"]}, "tools[1]", "invalid_type"),
    "no type": ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type", "missing_required_parameter"),
    "an unknown type": ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
    "a type that is a number": ({"tools": [{"type": 5}]}, "tools[0].type", "invalid_type"),
    "a custom tool": ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "invalid_value"),
    "no function": ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
    "a function of another type": (
        {"tools": [{"type": "function", "function": "f"}]},
        "tools[0].function",
        "invalid_type",
    ),
    "no name": (
        {"tools": [{"type": "function", "function": {}}]},
        "tools[0].function.name",
        "missing_required_parameter",
    ),
    "a name of another type": ({"tools": [_function(5)]}, "tools[0].function.name", "invalid_type"),
    "an empty name": ({"tools": [_function("")]}, "tools[0].function.name", "empty_string"),
    "a name with a space": ({"tools": [_function("a b")]}, "tools[0].function.name", "invalid_value"),
    "a name with an umlaut": (
        {"tools": [_function("wetter_für")]},
        "tools[0].function.name",
        "invalid_value",
    ),
    "a name and a line": ({"tools": [_function("a\n")]}, "tools[0].function.name", "invalid_value"),
    "a long name": ({"tools": [_function("f" * 65)]}, "tools[0].function.name", "string_above_max_length"),
    "a name twice": ({"tools": [_function(), _function()]}, "tools[1].function.name", "invalid_value"),
    "a description that is a number": (
        {"tools": [_function(description=5)]},
        "tools[0].function.description",
        "invalid_type",
    ),
    "strict as a text": ({"tools": [_function(strict="yes")]}, "tools[0].function.strict", "invalid_type"),
    "parameters as a list": ({"tools": [_function(parameters=[])]}, SCHEMA, "invalid_type"),
    "parameters without a type": (
        {"tools": [_function(parameters={"properties": {}})]},
        SCHEMA,
        "invalid_function_parameters",
    ),
    "parameters that are not an object": (
        {"tools": [_function(parameters={"type": "string"})]},
        SCHEMA,
        "invalid_function_parameters",
    ),
    "parameters of an unknown type": (
        {"tools": [_function(parameters=_parameters(town={"type": "text"}))]},
        SCHEMA,
        "invalid_function_parameters",
    ),
    "parameters that refer to nothing": (
        {"tools": [_function(parameters=_parameters(town={"$ref": "#/$defs/town"}))]},
        SCHEMA,
        "invalid_function_parameters",
    ),
    "parameters that are themselves": (
        {"tools": [_function(parameters={"type": "object", "$ref": "#"})]},
        SCHEMA,
        "invalid_function_parameters",
    ),
    "an unknown choice": ({"tools": [_function()], "tool_choice": "any"}, "tool_choice", "invalid_value"),
    "a choice of another type": ({"tools": [_function()], "tool_choice": 5}, "tool_choice", "invalid_type"),
    "a choice without a type": (
        {"tools": [_function()], "tool_choice": {"function": {"name": "weather"}}},
        "tool_choice.type",
        "missing_required_parameter",
    ),
    "allowed tools": (
        {"tools": [_function()], "tool_choice": {"type": "allowed_tools"}},
        "tool_choice.type",
        "invalid_value",
    ),
    "a choice without a function": (
        {"tools": [_function()], "tool_choice": {"type": "function"}},
        "tool_choice.function",
        "missing_required_parameter",
    ),
    "a choice without a name": (
        {"tools": [_function()], "tool_choice": {"type": "function", "function": {}}},
        "tool_choice.function.name",
        "missing_required_parameter",
    ),
    "a choice of another tool": (
        {"tools": [_function()], "tool_choice": _chosen("time")},
        "tool_choice",
        "invalid_value",
    ),
    "a choice without tools": ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
    "a named choice without tools": ({"tool_choice": _chosen("weather")}, "tool_choice", "invalid_value"),
    "parallel calls without tools": ({"parallel_tool_calls": True}, "parallel_tool_calls", "invalid_value"),
    "parallel calls as a text": (
        {"tools": [_function()], "parallel_tool_calls": "no"},
        "parallel_tool_calls",
        "invalid_type",
    ),
    "beams of a call that is demanded": (
        {"tools": [_function()], "tool_choice": "required", "use_beam_search": True},
        "use_beam_search",
        "unsupported_value",
    ),
    "calls as an object": ({"messages": _history(_call())}, "messages[1].tool_calls", "invalid_type"),
    "a call without an id": (
        {"messages": _history([_call(id=None)])},
        "messages[1].tool_calls[0].id",
        "missing_required_parameter",
    ),
    "a call of another type": (
        {"messages": _history([_call(type="custom", custom={"name": "f", "input": ""})])},
        "messages[1].tool_calls[0].type",
        "invalid_value",
    ),
    "a call without a function": (
        {"messages": _history([_call(function=None)])},
        "messages[1].tool_calls[0].function",
        "missing_required_parameter",
    ),
    "arguments as an object": (
        {"messages": _history([_call(function={"name": "weather", "arguments": {}})])},
        "messages[1].tool_calls[0].function.arguments",
        "invalid_type",
    ),
    **{
        f"arguments with {name}": (
            {"messages": _history([_call(function={"name": "weather", "arguments": arguments})])},
            "messages[1].tool_calls[0].function.arguments",
            "invalid_value",
        )
        for name, arguments in (
            ("3,000 levels", "[" * 3000 + "]" * 3000),
            ("65 levels", '{"a":' * 65 + "1" + "}" * 65),
            ("levels without an end", "[" * 3000),
            ("5,000 digits", '{"a":%s}' % ("1" * 5000)),
            ("half of a surrogate pair", '{"a":"\\ud83d"}'),
        )
    },
    "a result of no call": (
        {"messages": _history([_call()], tool_call_id=None)},
        "messages[2].tool_call_id",
        "missing_required_parameter",
    ),
    "a result of a number": (
        {"messages": _history([_call()], tool_call_id=5)},
        "messages[2].tool_call_id",
        "invalid_type",
    ),
}


def _refusal(gateway: Gateway, model: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The error of the answer; no engine may have been started for it."""
    with gateway.http() as http:
        response = http.post("/v1/chat/completions", json={"model": model, "messages": [USER], **fields})
    assert response.status_code == 400, response.text
    with gateway.http(gateway.admin_key) as http:
        engines = http.get("/v1/torpor/engines").json()["data"]
    assert {engine["state"] for engine in engines} == {"cold"}
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize("case", WITHOUT_TOOLS)
@pytest.mark.parametrize("model", [PLAIN, IGNORANT])
def test_a_model_without_tools_says_so(gateway: Gateway, model: str, case: str) -> None:
    fields, param, code = WITHOUT_TOOLS[case]
    error = _refusal(gateway, model, fields)
    assert (error["param"], error["code"]) == (param, code)
    if code == "tools_not_supported":
        assert error["message"] == f"The model `{model}` does not support tools."


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named(gateway: Gateway, case: str) -> None:
    fields, param, code = FAULTS[case]
    error = _refusal(gateway, CHAT_MODEL, fields)
    assert (error["param"], error["code"]) == (param, code)
    named = "function 'weather'" if code == "invalid_function_parameters" else param
    assert named in error["message"]


def test_a_template_that_ignores_tools_is_told(gateway: Gateway) -> None:
    assert f"model {IGNORANT} cannot use tools" in gateway.log
    assert f"model {CHAT_MODEL} cannot use tools" not in gateway.log
