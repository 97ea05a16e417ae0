"""What vLLM, FastAPI and pydantic say of a bad request, as a client of OpenAI's API sees it."""

import msgspec
import pytest

from gateway.http.errors import ApiError
from gateway.inference.engine_errors import EngineFault, engine_error, refusal


def _report(*entries: dict[str, object], more: int = 0) -> str:
    """As vLLM writes it: an entry a line, each as Python shows it."""
    count = len(entries) + more
    lines = [f"{count} validation error{'s' if count > 1 else ''}:", *(f"  {entry}" for entry in entries)]
    return "\n".join([*lines, f"  ...and {more} more errors"] if more else lines)


def _entry(kind: str, loc: str, msg: str, **others: object) -> dict[str, object]:
    return {"type": kind, "loc": loc, "msg": msg, "input": "None", **others}


_MESSAGE = "body.messages.0.ChatCompletion{}MessageParam.{}"
CONTENT = _report(
    _entry("string_type", _MESSAGE.format("Developer", "content"), "Input should be a valid string"),
    _entry("literal_error", _MESSAGE.format("Developer", "role"), "Input should be 'developer'"),
    _entry("string_type", _MESSAGE.format("User", "content"), "Input should be a valid string"),
    more=16,
)
ITERATOR = """7 validation errors for ValidatorIterator
0.ChatCompletionContentPartTextParam.text
  Input should be a valid string [type=string_type, input_value=5, input_type=int]
    For further information visit https://errors.pydantic.dev/2.14/v/string_type
0.ChatCompletionContentPartImageParam.type
  Input should be 'image_url' [type=literal_error, input_value='text', input_type=str]"""

CASES = {
    "a number that is too large": (
        _report(
            _entry(
                "less_than_equal",
                "body.seed",
                "Input should be less than or equal to 9223372036854775807",
                ctx={"le": 9223372036854775807},
            )
        ),
        "body.seed",
        "Invalid value for 'seed': it should be less than or equal to 9223372036854775807.",
        "seed",
    ),
    "a union of messages": (
        CONTENT,
        "body.messages.0.ChatCompletionDeveloperMessageParam.content",
        "Invalid type for 'messages[0].content': it should be a valid string.",
        "messages[0].content",
    ),
    "an iterator": (ITERATOR, None, "Invalid type for '[0].text': it should be a valid string.", "[0].text"),
    "a validator's own words": (
        _report(
            _entry(
                "value_error", "body", "Value error, Give one of both.", ctx={"error": ValueError("Give one")}
            )
        ),
        "body",
        "Give one of both.",
        None,
    ),
    "a missing member": (
        _report(_entry("missing", "body.tools.0.function", "Field required")),
        "body.tools.0.function",
        "Missing required parameter: 'tools[0].function'.",
        "tools[0].function",
    ),
    "a parameter in the message": (
        "token_id(s) [1000000] in logit_bias contain out-of-vocab token ids. Vocabulary size: 49152 "
        "(parameter=logit_bias, value=[1000000])",
        "logit_bias",
        "token_id(s) [1000000] in logit_bias contain out-of-vocab token ids. Vocabulary size: 49152",
        "logit_bias",
    ),
    "a parameter that only the message names": (
        "n must be 1 when using greedy sampling, got 2.",
        None,
        "n must be 1 when using greedy sampling, got 2.",
        "n",
    ),
    "arguments of the server": (
        "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser "
        "and/or --reasoning-config to use thinking_token_budget.",
        None,
        "thinking_token_budget is set but reasoning_config is not configured.",
        "thinking_token_budget",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_one_sentence_and_a_path(name: str) -> None:
    said, param, message, path = CASES[name]
    error = engine_error({"message": said, "type": "BadRequestError", "param": param, "code": 400})
    assert (error.status, error.message, error.param) == (400, message, path)


def test_the_details_of_fastapi_are_read_as_well() -> None:
    message, text = ["body", "messages", 0], "Input should be a valid string"
    details = [
        {"type": "literal_error", "loc": [*message, "System", "role"], "msg": "Input should be 'system'"},
        {"type": "string_type", "loc": [*message, "System", "content", "str"], "msg": "Not this one"},
        {"type": "string_type", "loc": [*message, "User", "content", "str"], "msg": text},
    ]
    error = refusal(422, msgspec.json.encode({"detail": details}))
    assert isinstance(error, ApiError)
    assert (error.status, error.param) == (400, "messages[0].content")
    assert error.message == "Invalid type for 'messages[0].content': it should be a valid string."


def test_a_refusal_that_says_nothing_known_is_kept() -> None:
    error = refusal(400, b'{"error": {"message": "Not today", "code": 400}}')
    assert isinstance(error, ApiError)
    assert (error.message, error.param) == ("Not today", None)


def test_a_failure_is_told_from_a_refusal() -> None:
    assert isinstance(engine_error({"message": "Internal server error", "code": 500}), EngineFault)
