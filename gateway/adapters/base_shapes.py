"""Which modules of a base model an adapter may change, and their shapes: from the model's configuration."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = frozenset(
    {
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "GraniteForCausalLM",
    }
)
"""Those whose layers are built as Llama's are, and whose modules vLLM all serves with adapters."""


class UnknownShapes(Exception):
    """The base model's configuration does not tell what adapters of it look like; the message says why."""


@dataclass(frozen=True, slots=True)
class BaseShapes:
    """The shapes that all layers share: (inputs, outputs) by module, ``self_attn.q_proj`` and so on."""

    layers: int
    modules: Mapping[str, tuple[int, int]]

    @property
    def names(self) -> tuple[str, ...]:
        """The modules' own names, ``q_proj`` and so on."""
        return tuple(module.rpartition(".")[2] for module in self.modules)


def read_shapes(folder: Path) -> BaseShapes:
    """From ``config.json`` of the model. Raises `UnknownShapes`."""
    try:
        configuration = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        raise UnknownShapes("its configuration cannot be read") from None
    architectures = configuration.get("architectures") or ["none"]
    if architectures[0] not in ARCHITECTURES:
        raise UnknownShapes(f"adapters of the architecture {architectures[0]} are not supported")
    return _shapes(configuration)


def _shapes(configuration: Mapping[str, Any]) -> BaseShapes:
    def number(name: str) -> int:
        value = configuration.get(name)
        if type(value) is not int or value < 1:
            raise UnknownShapes(f"its configuration has no {name}")
        return value

    hidden, inner, heads = number("hidden_size"), number("intermediate_size"), number("num_attention_heads")
    key_heads = number("num_key_value_heads") if configuration.get("num_key_value_heads") else heads
    head = number("head_dim") if configuration.get("head_dim") else hidden // heads
    return BaseShapes(
        number("num_hidden_layers"),
        {
            "self_attn.q_proj": (hidden, heads * head),
            "self_attn.k_proj": (hidden, key_heads * head),
            "self_attn.v_proj": (hidden, key_heads * head),
            "self_attn.o_proj": (heads * head, hidden),
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        },
    )
