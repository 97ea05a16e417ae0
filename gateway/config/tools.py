"""What the configuration says of a model's tool calls: its parsers and its chat template."""

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from engines.parsers import REASONING_PARSERS, TOOL_PARSERS
from engines.spec import Task
from gateway.config.faults import Fault


class ModelTools(Protocol):
    """What of a ``[[models]]`` section is read here: `gateway.config.sections.ModelConfig` has it."""

    @property
    def url(self) -> str | None: ...
    @property
    def task(self) -> Task: ...
    @property
    def source(self) -> Path | None: ...
    @property
    def engine_args(self) -> tuple[str, ...]: ...
    @property
    def tool_parser(self) -> str | None: ...
    @property
    def reasoning_parser(self) -> str | None: ...
    @property
    def chat_template(self) -> Path | None: ...


def tool_faults(model: ModelTools, index: int) -> Iterator[Fault]:
    """What is wrong with the parsers and the template of the model in the table of this number."""
    for key in ("tool_parser", "reasoning_parser", "chat_template"):
        if getattr(model, key) is not None and (model.url is not None or model.task is Task.EMBED):
            yield Fault("models", key, "is for models that Torpor runs and that generate", index)
    names = (
        ("tool_parser", model.tool_parser, TOOL_PARSERS),
        ("reasoning_parser", model.reasoning_parser, REASONING_PARSERS),
    )
    for key, name, allowed in names:
        if name is not None and name not in allowed and not _has_plugin(model, key):
            message = f"vLLM has no {key.replace('_', ' ')} {name!r}; {_hint(name, allowed)}"
            yield Fault("models", key, message, index)
    template_fault = _template_fault(model)
    if template_fault is not None:
        yield Fault("models", "chat_template", template_fault, index)


def _has_plugin(model: ModelTools, key: str) -> bool:
    """Plugins of vLLM bring parsers with names of their own."""
    option = f"--{key.replace('_', '-')}-plugin"
    return any(word.partition("=")[0] == option for word in model.engine_args)


def _hint(name: str, names: Collection[str]) -> str:
    close = get_close_matches(name, sorted(names), n=1)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(names))}"


def _template_fault(model: ModelTools) -> str | None:
    from metering.errors import TemplateError
    from metering.tokenizers.chat_template import ChatTemplate

    path = model.chat_template
    if path is None or model.source is None:
        return None
    if not path.is_file():
        return f"no such file: {path}"
    try:
        ChatTemplate.load(model.source, path)
    except TemplateError as error:
        return str(error)
    return None
