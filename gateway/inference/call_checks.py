"""Checks an inference call before any engine is asked, and says what is wrong in OpenAI's words.

Sources: the parameter types of the official ``openai`` client, 3.54, and the wording of OpenAI's API errors.
"""

import re
import typing
from typing import Any, TypeVar

import msgspec

from gateway.http.errors import ApiError, invalid_request
from gateway.inference.calls import (
    PART_TYPES,
    ROLES,
    AssistantMessage,
    Call,
    ChatCall,
    CompletionCall,
    EmbeddingCall,
    Generation,
    ResponseFormat,
    StructuredOutputs,
    TokenizeCall,
)
from gateway.inference.json_schemas import schema_fault

T = TypeVar("T", bound=Call)
MAX_PROMPTS = 2048
"""Prompts or inputs of one request, as many as OpenAI's embeddings take."""
MAX_CONSTRAINT_BYTES = 128 * 1024
"""The size of ``response_format``, ``structured_outputs`` or ``tools``, as JSON."""
_MOST_SHOWN = 64
_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
# The members of these are JSON Schemas or a template's own variables, where null is a value.
_KEPT_WHOLE = frozenset({"schema", "parameters", "json", "chat_template_kwargs"})
_NESTED = ("messages", "stream_options", "response_format", "tools", "tool_choice", "structured_outputs",
           "repetition_detection")  # fmt: skip

_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_EXPECTED = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_BOUND = re.compile(r"Expected `(?:int|float)[^`]*` (>=|<=|>|<) (\S+)")
_LENGTH = re.compile(r"Expected `(str|array)[^`]*` of length (>=|<=) (\d+)")
_UNKNOWN_VALUE = re.compile(r"Invalid (?:enum )?value (.*)$", re.DOTALL)
_STEP = re.compile(r"\[(\d+)\]|\[\.\.\.\]|\.?([^.\[\]]+)")


def without_nulls(body: dict[str, Any]) -> dict[str, Any]:
    """The call without what is null, which means absent; also inside of messages, tools and options.

    JSON Schemas and the variables of a chat template keep their nulls.
    """
    present = {name: value for name, value in body.items() if value is not None}
    for name in _NESTED:
        if name in present:
            present[name] = _present(present[name])
    return present


def _present(value: Any) -> Any:
    if isinstance(value, list):
        return [_present(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: item if name in _KEPT_WHOLE else _present(item)
        for name, item in value.items()
        if item is not None
    }


def check_call(body: dict[str, Any], kind: type[T]) -> T:
    """The fields that OpenAI and vLLM define, with their types checked.

    Raises 400 naming the first that is wrong. ``body`` is to be without nulls (`without_nulls`).
    """
    model = body.get("model")
    if model is None or model == "":
        raise invalid_request("You must provide a model parameter.", "model", "missing_required_parameter")
    try:
        call = msgspec.convert(body, kind, strict=True)
    except msgspec.ValidationError as error:
        raise validation_fault(str(error), body, kind) from None
    _check_values(call)
    if (
        isinstance(call, Generation)
        and call.response_format
        and call.response_format.type == "structural_tag"
    ):
        _check_schema(body["response_format"], "response_format")
    return call


def validation_fault(message: str, body: dict[str, Any], kind: type[msgspec.Struct]) -> ApiError:
    """400 in OpenAI's words for the message of a `msgspec.ValidationError`, with the body and its struct.

    msgspec says ``Expected `int`, got `str` - at `$.max_tokens```.
    """
    what, _, path = message.partition(" - at `$")
    param = path.rstrip("`").lstrip(".").replace("[...]", "") or None
    if match := re.search(r"missing required field `([^`]+)`", what):
        param = f"{param}.{match[1]}" if param else match[1]
        return missing(param)
    if match := re.search(r"contains unknown field `([^`]+)`", what):
        param = f"{param}.{match[1]}" if param else match[1]
        return invalid_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if match := _EXPECTED.match(what):
        expected = _either([_WORDS.get(name, name) for name in match[1].split(" | ") if name != "null"])
        actual = _WORDS.get(match[2], match[2])
        return wrong_type(param, expected, actual)
    if match := _BOUND.match(what):
        sign, bound = match[1], match[2]
        value = _shown(_value_at(body, path.rstrip("`")))
        message = f"Invalid value for '{param}': expected a value {sign} {bound}, but got {value} instead."
        return invalid_request(message, param, "invalid_value")
    if match := _LENGTH.match(what):
        unit = "character" if match[1] == "str" else "item"
        plural = "" if match[3] == "1" else "s"
        limit = f"at {'least' if match[2] == '>=' else 'most'} {match[3]} {unit}{plural}"
        return invalid_request(f"Invalid value for '{param}': it must have {limit}.", param, "invalid_value")
    if match := _UNKNOWN_VALUE.match(what):
        return _unknown_value(match[1], param, kind)
    return invalid_request(f"Invalid value for '{param}': {what}.", param, "invalid_value")


def missing(param: str) -> ApiError:
    """400 for a required field that is absent."""
    return invalid_request(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def wrong_type(param: str | None, expected: str, actual: str) -> ApiError:
    """400 for a field of another type; both types in words, with their articles."""
    message = f"Invalid type for '{param}': expected {expected}, but got {actual} instead."
    return invalid_request(message, param, "invalid_type")


def _unknown_value(value: str, param: str | None, kind: type[msgspec.Struct]) -> ApiError:
    choices: tuple[str, ...] = ()
    if param is not None and re.fullmatch(r"messages\[\d+\]\.role", param):
        choices = ROLES
    elif param is not None and param.startswith("messages[") and param.endswith("].type"):
        choices = ("function", "custom") if ".tool_calls[" in param else PART_TYPES
    elif param == "response_format.type":
        choices = _literals(ResponseFormat, "type")
    elif param is not None:
        choices = _literals(kind, param)
    supported = f" Supported values are: {_quoted(choices)}." if choices else ""
    return invalid_request(f"Invalid value: {value[:_MOST_SHOWN]}.{supported}", param, "invalid_value")


def _literals(kind: type[Any], name: str) -> tuple[str, ...]:
    hint = typing.get_type_hints(kind).get(name)
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is typing.Literal:
            return typing.get_args(part)
    return ()


def _quoted(values: tuple[str, ...]) -> str:
    quoted = [f"'{value}'" for value in values]
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}" if len(quoted) > 1 else "".join(quoted)


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else "".join(names)


def _value_at(body: Any, path: str) -> Any:
    value = body
    for index, name in _STEP.findall(path):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def _check_values(call: Call) -> None:
    if isinstance(call, TokenizeCall) and (call.prompt is None) == (call.messages is None):
        raise invalid_request("Give either 'prompt' or 'messages'.", "prompt", "invalid_value")
    if isinstance(call, ChatCall | TokenizeCall) and call.messages:
        _check_messages(call.messages)
    if isinstance(call, CompletionCall):
        _check_prompts(call.prompt, "prompt")
        _check_completion(call)
    if isinstance(call, EmbeddingCall):
        _check_prompts(call.input, "input")
    if isinstance(call, Generation):
        _check_generation(call)
    if isinstance(call, Generation | EmbeddingCall) and call.truncate_prompt_tokens == 0:
        raise invalid_request(
            "'truncate_prompt_tokens' must be -1, for all that fits, or at least 1, not 0.",
            "truncate_prompt_tokens",
            "invalid_value",
        )
    if isinstance(call, ChatCall) and call.top_logprobs and not call.logprobs:
        raise invalid_request(
            "'top_logprobs' is only allowed when 'logprobs' is true.", "top_logprobs", "invalid_value"
        )


def _check_messages(messages: list[Any]) -> None:
    for index, message in enumerate(messages):
        if isinstance(message, AssistantMessage) and message.content is None:
            other_content = (message.tool_calls, message.function_call, message.refusal, message.reasoning)
            if not any((*other_content, message.reasoning_content)):
                param = f"messages[{index}].content"
                raise missing(param)
        if message.content == []:
            param = f"messages[{index}].content"
            raise invalid_request(f"'{param}' must not be an empty array.", param, "invalid_value")


def _check_completion(call: CompletionCall) -> None:
    if call.suffix:
        raise invalid_request("'suffix' is not supported by this model.", "suffix", "unsupported_parameter")
    choices = call.n or 1
    if call.best_of is not None and call.best_of < choices:
        raise invalid_request(
            f"'best_of' must be at least 'n': {choices}, not {call.best_of}.", "best_of", "invalid_value"
        )
    if call.best_of is not None and call.best_of > choices:
        raise invalid_request(
            f"'best_of' is only supported when it equals 'n' ({choices}), not {call.best_of}: ask for more "
            "choices with 'n' and choose among them.",
            "best_of",
            "unsupported_value",
        )


def _check_generation(call: Generation) -> None:
    if call.stream_options is not None and not call.stream:
        raise invalid_request(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            "invalid_value",
        )
    for key in call.logit_bias or ():
        if not key.isdecimal() or len(key) > 10:
            raise invalid_request(
                f"Invalid key in 'logit_bias': {key[:_MOST_SHOWN]!r}. Keys must be token ids of the model.",
                "logit_bias",
                "invalid_value",
            )
    _check_constraint_size(call)
    if call.response_format is not None:
        _check_format(call.response_format)
    if call.structured_outputs is not None:
        _check_constraint(call.structured_outputs)


def _check_constraint_size(call: Generation) -> None:
    """Check the size of what the answer's form is compiled from, in all, as JSON."""
    tools = call.tools if isinstance(call, ChatCall) else None
    constraints = {
        "response_format": call.response_format,
        "structured_outputs": call.structured_outputs,
        "tools": tools,
    }
    for name, constraint in constraints.items():
        size = len(msgspec.json.encode(constraint)) if constraint else 0
        if size > MAX_CONSTRAINT_BYTES:
            raise invalid_request(
                f"'{name}' has {size:,} bytes as JSON, more than the {MAX_CONSTRAINT_BYTES:,} that an engine "
                "compiles for one answer. Use fewer or shorter alternatives, properties and descriptions.",
                name,
                "invalid_value",
            )


def _check_format(response_format: ResponseFormat) -> None:
    if response_format.type != "json_schema":
        return
    name, json_schema = "response_format.json_schema", response_format.json_schema
    if json_schema is None:
        raise missing(name)
    name = f"{name}.schema"
    if json_schema.schema is None:
        raise missing(name)
    _check_schema(json_schema.schema, name)


def _check_schema(schema: Any, name: str) -> None:
    if fault := schema_fault(schema):
        raise invalid_request(f"Invalid schema in '{name}': {fault}.", name, "invalid_value")


def _check_constraint(constraint: StructuredOutputs) -> None:
    kinds = [name for name in _CONSTRAINTS if getattr(constraint, name) is not None]
    if len(kinds) != 1:
        given = f", not {len(kinds)} ({', '.join(kinds)})" if kinds else ""
        message = f"'structured_outputs' must have exactly one of {', '.join(_CONSTRAINTS)}{given}."
        raise invalid_request(message, "structured_outputs", "invalid_value")
    if constraint.json_object is False:
        name = "structured_outputs.json_object"
        raise invalid_request(f"'{name}' must be true or absent.", name, "invalid_value")
    for name, schema in (("json", constraint.json), ("structural_tag", constraint.structural_tag)):
        _check_schema(_parsed(schema, f"structured_outputs.{name}"), f"structured_outputs.{name}")


def _parsed(schema: str | dict[str, Any] | None, name: str) -> Any:
    """vLLM takes a schema as a text as well."""
    if not isinstance(schema, str):
        return schema
    try:
        return msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError):
        raise invalid_request(
            f"Invalid schema in '{name}': it is not valid JSON.", name, "invalid_value"
        ) from None


def _check_prompts(prompts: str | list[Any], name: str) -> None:
    """A text, texts, the tokens of one, or the tokens of several: not mixed, not none, and not too many."""
    if not prompts:
        raise invalid_request(f"'{name}' must not be empty.", name, "invalid_value")
    if isinstance(prompts, str):
        return
    kind = type(prompts[0])
    if any(type(prompt) is not kind for prompt in prompts):
        raise invalid_request(
            f"Invalid type for '{name}': texts and tokens cannot be mixed.", name, "invalid_type"
        )
    if kind is not int and len(prompts) > MAX_PROMPTS:
        raise invalid_request(f"'{name}' may hold at most {MAX_PROMPTS} prompts.", name, "invalid_value")
    if kind is list and not all(prompts):
        raise invalid_request(f"'{name}' must not hold an empty array.", name, "invalid_value")
