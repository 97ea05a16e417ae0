"""A model with a reasoning parser and a chat template of the operator's: demanded calls are still there."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from engines.spec import ModelSpec
from gateway.inference.call_checks import check_call
from gateway.inference.calls import ChatCall
from gateway.inference.catalog import load_model
from gateway.inference.token_counts import count_prompts
from tests.process import CHAT_MODEL, MODELS, Gateway, running_gateway

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
}
TOOLS = [{"type": "function", "function": {"name": "forecast", "parameters": SCHEMA}}]
TEMPLATE = """\
{%- if tools %}{{ 'Functions: ' + (tools | tojson) + '\n' }}{% endif %}
{%- for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif -%}
"""
REQUEST: dict[str, Any] = {
    "model": CHAT_MODEL,
    "messages": [{"role": "user", "content": "Will it rain in Rome?"}],
    "tools": TOOLS,
    "temperature": 0,
    "max_tokens": 120,
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Its model never ends its reasoning: to the parser, all that it says is that."""
    folder = tmp_path_factory.mktemp("reasoning")
    (folder / "own.jinja").write_text(TEMPLATE)
    models = f"""
[[models]]
id = "{CHAT_MODEL}"
source = "{MODELS / CHAT_MODEL}"
kv_cache_gib = 0.25
max_model_len = 2048
tool_parser = "hermes"
reasoning_parser = "qwen3"
chat_template = "own.jinja"
"""
    with running_gateway(folder, models) as started:
        yield started


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}])
def test_a_demanded_call_is_not_reasoning(gateway: Gateway, choice: Any) -> None:
    client: Any = gateway.client()
    answer = client.chat.completions.create(**REQUEST, tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    streamed = ""
    for chunk in client.chat.completions.create(**REQUEST, tool_choice=choice, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            streamed += part.function.arguments or ""
    for arguments in (call.function.arguments, streamed):
        Draft202012Validator(SCHEMA).validate(json.loads(arguments))


def test_other_answers_are_the_parsers(gateway: Gateway) -> None:
    client: Any = gateway.client()
    message = client.chat.completions.create(**{**REQUEST, "max_tokens": 8}).choices[0].message
    assert message.model_extra["reasoning"]
    assert not message.content


@pytest.mark.parametrize("fields", [{}, {"tool_choice": "none"}, {"tool_choice": "required"}])
def test_the_operators_template_is_rendered_and_counted(gateway: Gateway, fields: dict[str, Any]) -> None:
    request = {**REQUEST, **fields, "max_tokens": 1}
    client: Any = gateway.client()
    answer = client.chat.completions.create(**request)
    template = gateway.folder / "own.jinja"
    spec = ModelSpec(id=CHAT_MODEL, source=MODELS / CHAT_MODEL, tool_parser="hermes", chat_template=template)
    counted = count_prompts(load_model(spec, 1), check_call(request, ChatCall), request)
    assert counted.total == answer.usage.prompt_tokens
