"""A model's own chat template, rendered as the engine renders it.

The environment is that of `transformers` (`utils/chat_template_utils.py`, version 5), the shape of the
messages that of vLLM (`renderers/`): what comes out is the text that the engine tokenizes.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Self

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from metering.errors import TemplateError

_PROBE = "torpor_probe"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """Renders conversations in OpenAI's shape. It runs in an immutable sandbox: the template is data."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, tool_source: str | None) -> None:
        environment = _environment()
        self._special_tokens = dict(special_tokens)
        try:
            self._plain = _Compiled(environment, source)
            self._for_tools = self._plain if tool_source is None else _Compiled(environment, tool_source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the chat template is broken: {error}") from error

    @classmethod
    def load(cls, folder: Path, file: Path | None = None) -> Self:
        """From ``file``, else ``chat_template.jinja``, else ``tokenizer_config.json``, of the model's folder.

        Raises `TemplateError` if there is none, or if it cannot be read.
        """
        config_file, template_file = folder / "tokenizer_config.json", file or folder / "chat_template.jinja"
        try:
            config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
            if file is not None or template_file.is_file():
                templates = {"default": template_file.read_text(encoding="utf-8")}
            else:
                templates = _named(config.get("chat_template"))
            special = _special_tokens(config)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise TemplateError(f"the chat template of {folder.name} cannot be read: {error}") from error
        if "default" not in templates:
            raise TemplateError(f"{folder.name} has no chat template")
        return cls(templates["default"], special, tool_source=templates.get("tool_use"))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of the prompt. It has the special tokens: tokenize it without adding any.

        Raises `TemplateError` if the template refuses the messages, or cannot make anything of them.
        """
        compiled = self._for_tools if tools else self._plain
        try:
            given = dict(chat_template_kwargs or {})
            return compiled.template.render(
                {
                    **self._special_tokens,
                    **given,
                    "messages": compiled.shaped(messages),
                    "tools": [_tool(tool) for tool in tools] if tools else None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except Exception as error:
            raise TemplateError(f"the chat template refuses the messages: {error}") from error

    def renders_tools(self) -> bool:
        """Whether a tool of a request gets into the prompt."""
        tool = {"type": "function", "function": {"name": _PROBE, "parameters": {"type": "object"}}}
        try:
            return _PROBE in self.render([{"role": "user", "content": "Hi"}], tools=[tool])
        except TemplateError:
            return False


class _Compiled:
    """A template, and what shape it wants messages in."""

    def __init__(self, environment: ImmutableSandboxedEnvironment, source: str) -> None:
        self.template = environment.from_string(source)
        self._wants_parts = _iterates_content(environment.parse(source))
        self._knows_developer = '"developer"' in source or "'developer'" in source

    def shaped(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [self._message(message) for message in messages]

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        role = message["role"]
        shaped: dict[str, Any] = {"role": role, "content": self._content(message.get("content"), role)}
        if role == "developer" and not self._knows_developer:
            shaped["role"] = "system"
        if isinstance(message.get("name"), str):
            shaped["name"] = message["name"]
        if role == "assistant":
            if message.get("tool_calls"):
                shaped["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
            if message.get("reasoning") is not None:
                shaped["reasoning"] = shaped["reasoning_content"] = message["reasoning"]
        elif role == "tool" and "tool_call_id" in message:
            shaped["tool_call_id"] = message["tool_call_id"]
        return shaped

    def _content(self, content: Any, role: str) -> Any:
        parts = [content] if isinstance(content, str) else list(content or ())
        texts = [part if isinstance(part, str) else _text(part) for part in parts]
        if self._wants_parts and role != "tool":
            return [{"type": "text", "text": text} for text in texts]
        return "\n".join(texts)


def _text(part: Mapping[str, Any]) -> str:
    """The text of a content part; anything but text is for the engine to judge."""
    for name in ("text", "refusal", "thinking"):
        if isinstance(part.get(name), str):
            text: str = part[name]
            return text
    raise TemplateError(f"a content part of type {part.get('type')!r} has no text")


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool as vLLM hands it to a template: the fields that it knows, in its order."""
    function = tool["function"]
    shaped = {name: copy.deepcopy(function.get(name)) for name in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        shaped["strict"] = function["strict"]
    return {"type": "function", "function": shaped}


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object, as templates expect them; malformed ones are empty."""
    shaped = copy.deepcopy(dict(call))
    function = shaped["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}
    function["arguments"] = arguments
    return shaped


def _iterates_content(template: nodes.Template) -> bool:
    """Whether the template goes through the parts of a message's content, as vLLM tells it.

    That is a loop over something's ``content``, or over a variable that was set to it.
    """
    names = {"content"}
    for assignment in template.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, names):
            names.add(assignment.target.name)
    return any(_is_content(loop.iter, names) for loop in template.find_all(nodes.For))


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Name) and node.name in names


def _named(templates: Any) -> dict[str, str]:
    """The templates of a tokenizer's configuration: one, several with names, or none."""
    if templates is None:
        return {}
    if isinstance(templates, str):
        return {"default": templates}
    return {str(template["name"]): str(template["template"]) for template in templates}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in _SPECIAL:
        token = config.get(name)
        if isinstance(token, Mapping):
            token = token["content"]
        if token is not None:
            tokens[name] = str(token)
    return tokens


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The block's body, in a scope of its own as it is in a call."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
