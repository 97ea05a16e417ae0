"""The models of this installation, as a caller sees them."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from engines.spec import ModelSpec, Task, context_length
from gateway.http.errors import ApiError, invalid_request, model_not_found
from gateway.inference.model_traits import Traits, read_traits
from metering.errors import TemplateError
from metering.tokenizers.chat_template import ChatTemplate
from metering.tokenizers.counter import TokenCounter
from tenants.adapters.index import RegisteredAdapter
from tenants.types import ProjectPrincipal

_logger = logging.getLogger("torpor.catalog")


@dataclass(frozen=True, slots=True)
class Model:
    """A model with what the gateway itself knows of its tokens.

    ``max_model_len`` is in tokens. ``counter`` and ``template`` are ``None`` for a model behind
    a ``url``, and ``template`` for one that has none. ``adapter``: the adapter on the base model, if any.
    """

    spec: ModelSpec
    created: int
    max_model_len: int | None
    counter: TokenCounter | None
    template: ChatTemplate | None
    adapter: RegisteredAdapter | None = None
    traits: Traits = field(default_factory=Traits)

    @property
    def id(self) -> str:
        """The base model's id."""
        return self.spec.id

    @property
    def name(self) -> str:
        """What a client calls it."""
        return self.spec.id if self.adapter is None else self.adapter.name

    @property
    def adapter_name(self) -> str | None:
        """The adapter's, where it is one."""
        return None if self.adapter is None else self.adapter.name

    def card(self) -> dict[str, Any]:
        """OpenAI's ``model`` object, with vLLM's ``max_model_len``, and an adapter's ``parent``."""
        return self._base_card() if self.adapter is None else self.card_of(self.adapter)

    def card_of(self, adapter: RegisteredAdapter) -> dict[str, Any]:
        """That of an adapter on this model."""
        card = {
            "id": adapter.name,
            "created": adapter.created_at,
            "owned_by": adapter.name.split(":")[2],
            "parent": self.id,
        }
        return self._base_card() | card

    def _base_card(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "torpor",
            "max_model_len": self.max_model_len,
        }


class Catalog:
    """Resolves the name in a request to a model that the caller may use."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = {model.id: model for model in models}

    def visible(self, principal: ProjectPrincipal) -> list[Model]:
        """What the caller may use, in the order of the configuration."""
        return [model for model in self._models.values() if principal.may_use(model.id)]

    def get(self, model_id: str) -> Model | None:
        """The model of that id."""
        return self._models.get(model_id)

    def ids(self) -> list[str]:
        """Every model, in the order of the configuration."""
        return list(self._models)

    def resolve(self, principal: ProjectPrincipal, name: str, task: Task | None = None) -> Model:
        """Find a model by name. Raises 404 if the caller has no such model, 400 if it cannot do the task."""
        model = self._models.get(name)
        if model is None or not principal.may_use(name):
            raise model_not_found(name)
        if task is not None and model.spec.task is not task:
            raise wrong_task(name, task)
        return model


def wrong_task(name: str, task: Task) -> ApiError:
    """400: the model is there, but not for this."""
    does = "generate text" if task is Task.GENERATE else "make embeddings"
    return invalid_request(f"The model `{name}` does not {does}.", "model", "model_not_supported")


def load_model(spec: ModelSpec, created: int) -> Model:
    """Read the tokenizer, the chat template and the context length from the model's folder."""
    if spec.source is None:
        return Model(spec, created, spec.max_model_len, None, None, traits=read_traits(spec, None))
    counter, template = TokenCounter.load(spec.source), _template(spec)
    traits = replace(read_traits(spec, counter), takes_tools=_takes_tools(spec, template))
    return Model(spec, created, context_length(spec), counter, template, traits=traits)


def _takes_tools(spec: ModelSpec, template: ChatTemplate | None) -> bool:
    """A model without a template may be one that vLLM renders by itself."""
    if spec.serves_tools and template is not None and not template.renders_tools():
        _logger.warning(
            "model %s cannot use tools: its chat template does not render them; "
            "name one that does with chat_template",
            spec.id,
        )
        return False
    return spec.serves_tools


def _template(spec: ModelSpec) -> ChatTemplate | None:
    if spec.task is not Task.GENERATE or spec.source is None:
        return None
    try:
        return ChatTemplate.load(spec.source, spec.chat_template)
    except TemplateError as error:
        _logger.warning("model %s has no usable chat template: %s", spec.id, error)
        return None
