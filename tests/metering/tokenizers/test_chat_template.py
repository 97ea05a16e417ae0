"""Prompts equal to those of `transformers`, which the engine itself uses."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from metering.errors import TemplateError
from metering.tokenizers.chat_template import ChatTemplate

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather <now> & "here"',
        "parameters": {"type": "object", "properties": {"città": {"type": "string"}}},
    },
}

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "  spaces \n\n and lines \n"},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "<|im_end|> {{ 7 * 7 }} {% raw %} &lt;b&gt; 東京 \U0001f600"},
    ],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
]


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def reference(models: Path) -> Any:
    return _tokenizer(models / "smollm2-135m")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_real_model_is_equal(
    models: Path, reference: Any, conversation: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    template = ChatTemplate.load(models / "smollm2-135m")
    expected = reference.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert template.render(conversation, add_generation_prompt=add_generation_prompt) == expected


TEMPLATES = {
    "blocks are trimmed": """\
{% for message in messages %}
    {% if message.role == 'user' %}
  U: {{ message['content'] | trim }}
    {% else %}
  {{ message.role | upper }}: {{ message.content }}
    {%- endif %}
{% endfor %}
""",
    "tools as json": """\
{{ bos_token }}{% if tools %}{{ tools | tojson }}|{{ tools | tojson(indent=2) }}|{{ tools is mapping }}
{% else %}no tools{{ tools is none }}{% endif %}
{%- for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}
{%- if add_generation_prompt %}go{% endif %}""",
    "loop controls": """\
{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
{{ loop.index }}{{ m.content }}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}""",
    "generation": """\
{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}
{{ m.content }}{% set ns.n = ns.n + 1 %}{% endgeneration %}{% endif %}{% endfor %}{{ ns.n }}""",
    "parts": """\
{% for m in messages %}{% for part in m['content'] %}[{{ part.type }}:{{ part.text }}]{% endfor %}
{% endfor %}{{ unknown is defined }}""",
    "dates": "{{ strftime_now('%Y-%m-%d') }}{{ documents is none }}{{ messages | length }}",
    "macros": """\
{% macro show(text) %}<{{ text }}>{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}""",
}


def _written(folder: Path, template: str) -> ChatTemplate:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    return ChatTemplate.load(folder)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [WEATHER]])
def test_features_of_templates_are_equal(
    tmp_path: Path, name: str, conversation: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    target = conversation
    if name == "parts":
        target = [{**item, "content": [{"type": "text", "text": item["content"]}]} for item in conversation]
    (expected,), _ = render_jinja_template(
        [target],
        tools=tools,
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert _written(tmp_path, TEMPLATES[name]).render(conversation, tools=tools) == expected


def test_parts_are_joined_by_lines_where_the_template_wants_text(models: Path) -> None:
    template = ChatTemplate.load(models / "smollm2-135m")
    parts: list[Any] = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    joined = template.render([{"role": "user", "content": "one\ntwo"}])
    assert template.render([{"role": "user", "content": parts}]) == joined
    strings: list[dict[str, Any]] = [{"role": "user", "content": ["one", "two"]}]
    assert template.render(strings) == joined


@pytest.mark.parametrize(
    "loop",
    [
        "{% for p in message.content %}{{ p.text }}{% endfor %}",
        "{% for p in message['content'][1:] %}{{ p.text }}{% endfor %}",
        "{% set c = message.content %}{% for p in c | list %}{{ p.text }}{% endfor %}",
    ],
)
def test_parts_are_kept_where_the_template_goes_through_them(tmp_path: Path, loop: str) -> None:
    template = _written(tmp_path, "{% for message in messages %}" + loop + "{% endfor %}")
    assert template.render(
        [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}]
    ) == ("y" if "[1:]" in loop else "xy")


def test_arguments_of_tool_calls_are_objects(tmp_path: Path) -> None:
    template = _written(
        tmp_path,
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }};"
        "{% endfor %}{{ m.tool_call_id }}{{ m.content }}{% endfor %}",
    )
    calls: list[dict[str, Any]] = [
        {"id": str(number), "type": "function", "function": {"name": "f", "arguments": arguments}}
        for number, arguments in enumerate(['{"a": 1}', "", "{broken", {"b": 2}])
    ]
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "7", "content": [{"type": "text", "text": "ok"}]},
    ]
    assert template.render(messages) == '{"a": 1};{};{};{"b": 2};7ok'
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_developer_speaks_as_system_where_the_template_knows_no_developer(tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.role }}{% endfor %}"
    message = [{"role": "developer", "content": "x"}]
    assert _written(tmp_path, source).render(message) == "system"
    assert _written(tmp_path, source + "{# 'developer' #}").render(message) == "developer"


def test_named_templates_of_the_configuration(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    template = ChatTemplate.load(tmp_path)
    assert template.render(CONVERSATIONS[0]) == "plain"
    assert template.render(CONVERSATIONS[0], tools=[WEATHER]) == "tools"


def test_extra_arguments_reach_the_template_but_replace_no_message(tmp_path: Path) -> None:
    template = _written(tmp_path, "{{ thinking }}{{ messages | length }}{{ bos_token }}")
    extra = {"thinking": False, "messages": [], "bos_token": "<b>"}
    assert template.render(CONVERSATIONS[1], chat_template_kwargs=extra) == "False2<b>"


@pytest.mark.parametrize(
    ("source", "messages"),
    [
        ("{{ raise_exception('roles must alternate') }}", CONVERSATIONS[0]),
        ("{{ messages[0].content + 1 }}", CONVERSATIONS[0]),
        ("{{ messages[0].nothing.at_all }}", CONVERSATIONS[0]),
        ("{{ messages.append(1) }}", CONVERSATIONS[0]),
        ("{{ messages.__class__.__mro__ }}", CONVERSATIONS[0]),
        ("{{ ''.__class__.__base__.__subclasses__() }}", CONVERSATIONS[0]),
        ("{% for i in range(10000000) %}{% endfor %}", CONVERSATIONS[0]),
        ("x", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("x", [{"content": "no role"}]),
        ("x", [{"role": "user", "content": 5}]),
        ("x", ["no message"]),
        ("x", [{"role": "assistant", "tool_calls": [{}]}]),
    ],
)
def test_what_cannot_be_rendered_is_a_template_error(tmp_path: Path, source: str, messages: Any) -> None:
    with pytest.raises(TemplateError):
        _written(tmp_path, source).render(messages)


def test_arguments_that_are_no_object_are_a_template_error(tmp_path: Path) -> None:
    with pytest.raises(TemplateError):
        _written(tmp_path, "x").render(CONVERSATIONS[0], chat_template_kwargs=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["{% for %}", "{{ open", "{% unknown %}"])
def test_broken_template_is_told_at_the_start(tmp_path: Path, source: str) -> None:
    with pytest.raises(TemplateError, match="broken"):
        _written(tmp_path, source)


@pytest.mark.parametrize("config", [None, "{}", "{", "[]", '{"chat_template": [1]}', '{"chat_template": []}'])
def test_missing_template_is_told(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(TemplateError):
        ChatTemplate.load(tmp_path)


SMOLLM2_SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": " Hi\n"}], SMOLLM2_SYSTEM + "<|im_start|>user\n Hi\n<|im_end|>\n"),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
        ),
        (
            [{"role": "assistant", "content": "<b>"}, {"role": "system", "content": ""}],
            SMOLLM2_SYSTEM + "<|im_start|>assistant\n<b><|im_end|>\n<|im_start|>system\n<|im_end|>\n",
        ),
    ],
)
def test_the_default_models_template_is_smollm2s_own_without_tools(
    models: Path, messages: list[dict[str, Any]], expected: str
) -> None:
    template = ChatTemplate.load(models / "smollm2-135m")
    assert template.render(messages, add_generation_prompt=False) == expected
    assert template.render(messages) == expected + "<|im_start|>assistant\n"


def test_the_default_models_template_renders_tools_calls_and_results(models: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"città": "Roma"}'}}
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "rainy"}]},
    ]
    template = ChatTemplate.load(models / "smollm2-135m")
    system, rest = template.render(conversation, tools=[WEATHER]).split("<|im_end|>\n", 1)
    called = '<tool_call>\n{"name": "weather", "arguments": {"città": "Roma"}}\n</tool_call>'
    assert system.startswith(SMOLLM2_SYSTEM.removesuffix("<|im_end|>\n"))
    assert f"\n<tools>\n{json.dumps(WEATHER, ensure_ascii=False)}\n</tools>\n" in system
    assert rest == (
        f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{called}\n{called}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrainy\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.renders_tools()


def test_a_file_goes_before_the_models_own_template(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}")
    template = ChatTemplate.load(models / "smollm2-135m", file)
    assert template.render([{"role": "user", "content": "Hi"}]) == "Hi"
    assert not template.renders_tools()
    with pytest.raises(TemplateError):
        ChatTemplate.load(models / "smollm2-135m", tmp_path / "missing.jinja")
