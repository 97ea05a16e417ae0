"""The tools of a chat request: checked as OpenAI checks them, before any engine is woken for them."""

import json
import re
from collections.abc import Mapping
from typing import Any

from gateway.http.errors import ApiError, invalid_request
from gateway.http.json_numbers import deeper_than
from gateway.inference.call_checks import missing, wrong_type
from gateway.inference.calls import AssistantMessage, ChatCall, CustomToolCall, FunctionToolCall, ToolMessage
from gateway.inference.catalog import Model
from gateway.inference.json_schemas import schema_fault
from gateway.inference.schema_definitions import definition_fault

MAX_TOOLS = 128
_MAX_NAME = 64
_MAX_DEPTH = 64
_MAX_DIGITS = 4300
_SURROGATE_OR_DIGITS = re.compile(rf"\\u[dD][89a-fA-F]|\d{{{_MAX_DIGITS + 1}}}")
_NAME = "[a-zA-Z0-9_-]+"
_FUNCTIONS_ONLY = "Supported values are: 'function'."
_CHOICES = ("none", "auto", "required")
_JSON_TYPES: Mapping[type[Any], str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def check_tools(call: ChatCall, body: dict[str, Any], model: Model) -> None:
    """Check a call's tools; raise 400 for malformed ones and for a model that cannot use any.

    A tool without parameters gets the schema of an empty object.

    What another server runs is left to that server.
    """
    if model.spec.remote:
        return
    if call.tools is not None:
        _require_support(model, "tools")
        _check_tools(call.tools)
        body["tools"] = [_with_parameters(tool) for tool in call.tools]
    _check_choice(call)
    for index, message in enumerate(call.messages):
        if isinstance(message, ToolMessage):
            _require_support(model, f"messages[{index}].role")
        elif isinstance(message, AssistantMessage) and message.tool_calls:
            _require_support(model, f"messages[{index}].tool_calls")
            _check_calls(message.tool_calls, f"messages[{index}].tool_calls")


def _require_support(model: Model, param: str) -> None:
    if not model.traits.takes_tools:
        raise invalid_request(
            f"The model `{model.name}` does not support tools.", param, "tools_not_supported"
        )


def _check_tools(tools: list[Any]) -> None:
    if not tools:
        raise invalid_request(
            "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty array "
            "instead.",
            "tools",
            "empty_array",
        )
    if len(tools) > MAX_TOOLS:
        raise invalid_request(
            f"Invalid 'tools': array too long. Expected an array with maximum length {MAX_TOOLS}, but got an "
            f"array with length {len(tools)} instead.",
            "tools",
            "array_above_max_length",
        )
    names: set[str] = set()
    for index, tool in enumerate(tools):
        param = f"tools[{index}]"
        _check_type(_object(tool, param), param)
        function = _object(_required(tool, "function", param), f"{param}.function")
        _check_function(function, f"{param}.function")
        if function["name"] in names:
            raise invalid_request(
                f"Invalid '{param}.function.name': 'tools' has two functions of that name.",
                f"{param}.function.name",
                "invalid_value",
            )
        names.add(function["name"])


def _check_type(tool: Mapping[str, Any], param: str) -> None:
    kind = _required(tool, "type", param)
    if kind != "function":
        raise _unsupported_value(kind, f"{param}.type", _FUNCTIONS_ONLY)


def _check_function(function: Mapping[str, Any], param: str) -> None:
    name = _check_name(_required(function, "name", param), f"{param}.name")
    if function.get("description") is not None:
        _string(function["description"], f"{param}.description")
    if not isinstance(strict := function.get("strict"), bool | None):
        raise _wrong_type(strict, f"{param}.strict", "a boolean")
    parameters = function.get("parameters")
    if parameters is None:
        return
    fault = None
    if _object(parameters, f"{param}.parameters"):
        kind = parameters.get("type")
        if kind != "object":
            excerpt = "None" if kind is None else kind
            fault = f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{excerpt}\"'"
        else:
            fault = definition_fault(parameters) or schema_fault(parameters)
    if fault is not None:
        raise invalid_request(
            f"Invalid schema for function '{name}': {fault}.",
            f"{param}.parameters",
            "invalid_function_parameters",
        )


def _check_name(name: Any, param: str) -> str:
    text = _string(name, param)
    if not text:
        raise invalid_request(
            f"Invalid '{param}': empty string. Expected a string with minimum length 1, but got an empty "
            "string instead.",
            param,
            "empty_string",
        )
    if len(text) > _MAX_NAME:
        raise invalid_request(
            f"Invalid '{param}': string too long. Expected a string with maximum length {_MAX_NAME}, but got "
            f"a string with length {len(text)} instead.",
            param,
            "string_above_max_length",
        )
    if not re.fullmatch(_NAME, text):
        raise invalid_request(
            f"Invalid '{param}': string does not match pattern. Expected a string that matches the pattern "
            f"'^{_NAME}$'.",
            param,
            "invalid_value",
        )
    return text


def _with_parameters(tool: dict[str, Any]) -> dict[str, Any]:
    """The engine would let a function without a schema be called with any JSON value."""
    function = tool["function"]
    if function.get("parameters"):
        return tool
    return {**tool, "function": {**function, "parameters": {"type": "object", "properties": {}}}}


def _check_choice(call: ChatCall) -> None:
    choice = call.tool_choice
    if call.tools is None:
        for name in ("tool_choice", "parallel_tool_calls"):
            if getattr(call, name) not in (None, "none"):
                raise invalid_request(
                    f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified.",
                    name,
                    "invalid_value",
                )
    elif isinstance(choice, str):
        if choice not in _CHOICES:
            raise _unsupported_value(
                choice, "tool_choice", "Supported values are: 'none', 'auto', and 'required'."
            )
    elif choice is not None:
        _check_named(choice, {tool["function"]["name"] for tool in call.tools})
    if call.use_beam_search and choice not in (None, "none", "auto"):
        raise invalid_request(
            "'use_beam_search' cannot be combined with a 'tool_choice' that demands a call.",
            "use_beam_search",
            "unsupported_value",
        )


def _check_named(choice: Mapping[str, Any], names: set[str]) -> None:
    _check_type(choice, "tool_choice")
    function = _object(_required(choice, "function", "tool_choice"), "tool_choice.function")
    name = _string(_required(function, "name", "tool_choice.function"), "tool_choice.function.name")
    if name not in names:
        excerpt = name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "..."
        raise invalid_request(
            f"Invalid value for 'tool_choice': function '{excerpt}' not found in 'tools'.",
            "tool_choice",
            "invalid_value",
        )


def _check_calls(calls: list[FunctionToolCall | CustomToolCall], param: str) -> None:
    for index, call in enumerate(calls):
        if isinstance(call, CustomToolCall):
            raise _unsupported_value("custom", f"{param}[{index}].type", _FUNCTIONS_ONLY)
        if not _is_readable(call.function.arguments):
            name = f"{param}[{index}].function.arguments"
            raise invalid_request(
                f"Invalid value for '{name}': its JSON must not be nested deeper than {_MAX_DEPTH} levels or "
                f"contain an integer of more than {_MAX_DIGITS} digits or half of a surrogate pair.",
                name,
                "invalid_value",
            )


def _is_readable(arguments: str) -> bool:
    """Whether an engine can read the arguments of an earlier call, which it does to render the chat template.

    It takes arguments that are not JSON for a text.
    """
    is_shallow = arguments.count("{") + arguments.count("[") <= _MAX_DEPTH
    if is_shallow and _SURROGATE_OR_DIGITS.search(arguments) is None:
        return True
    try:
        value = json.loads(arguments)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return not isinstance(value, dict | list) or not deeper_than(value, _MAX_DEPTH)


def _required(value: Mapping[str, Any], name: str, param: str) -> Any:
    if value.get(name) is None:
        param = f"{param}.{name}"
        raise missing(param)
    return value[name]


def _object(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong_type(value, param, "an object")
    return value


def _string(value: Any, param: str) -> str:
    if value is None:
        raise missing(param)
    if not isinstance(value, str):
        raise _wrong_type(value, param, "a string")
    return value


def _wrong_type(value: Any, param: str, expected: str) -> ApiError:
    return wrong_type(param, expected, _JSON_TYPES[type(value)])


def _unsupported_value(value: Any, param: str, supported: str) -> ApiError:
    if not isinstance(value, str):
        return _wrong_type(value, param, "a string")
    excerpt = value if len(value) <= _MAX_NAME else value[:_MAX_NAME] + "..."
    return invalid_request(f"Invalid value for '{param}': '{excerpt}'. {supported}", param, "invalid_value")
