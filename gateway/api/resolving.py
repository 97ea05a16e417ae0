"""The model that a name means for the caller: a base model, or an adapter on one."""

from dataclasses import replace
from typing import Any

from engines.spec import Task
from gateway.http.errors import model_not_found
from gateway.inference.catalog import Model, wrong_task
from gateway.services import Services
from tenants.adapters.registry import PREFIX
from tenants.types import ProjectPrincipal


def resolve_model(
    services: Services, principal: ProjectPrincipal, name: str, task: Task | None = None
) -> Model:
    """Find the model or adapter of a request. Raises 404 if there is none, 400 if it cannot do the task.

    Another tenant's adapter takes the same steps as one that does not exist.
    """
    if not name.startswith(PREFIX):
        return services.catalog.resolve(principal, name, task)
    adapter = services.adapters.registry.index.find(principal, name)
    base = None if adapter is None else services.catalog.get(adapter.base_model)
    if adapter is None or base is None or not principal.may_use(name, adapter.base_model):
        raise model_not_found(name)
    if task is not None and base.spec.task is not task:
        raise wrong_task(name, task)
    return replace(base, adapter=adapter)


def visible_cards(services: Services, principal: ProjectPrincipal) -> list[dict[str, Any]]:
    """What the caller may use: base models in the order of the configuration, then adapters."""
    catalog = services.catalog
    cards = [model.card() for model in catalog.visible(principal)]
    for adapter in services.adapters.registry.index.visible(principal):
        base = catalog.get(adapter.base_model)
        if base is not None and principal.may_use(adapter.name, adapter.base_model):
            cards.append(base.card_of(adapter))
    return cards
