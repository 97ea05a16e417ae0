"""``adapter_config.json`` as PEFT writes it: what of it can be served, and the form in which it is kept.

PEFT's options are those of ``peft.LoraConfig`` (https://huggingface.co/docs/peft). One that changes what the
adapter computes, and that the engine would ignore, is refused by name; so is an unknown one.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.adapters.errors import InvalidAdapter, shown

MAX_CONFIG_BYTES = 256 * 1024
_READ = frozenset({"peft_type", "task_type", "r", "lora_alpha", "target_modules", "use_rslora"})
_WITHOUT_EFFECT = frozenset(
    {
        # about where it comes from
        "auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode",
        # about its training
        "lora_dropout", "runtime_config", "loftq_config", "eva_config", "lora_ga_config", "corda_config",
        "megatron_core", "qalora_group_size", "ensure_weight_tying", "init_lora_weights",
        # about which modules it has: the tensors themselves tell
        "exclude_modules", "layers_to_transform", "layers_pattern",
    }
)  # fmt: skip
_REASONS: Mapping[str, str] = {
    "use_dora": "DoRA is not supported by the engine",
    "modules_to_save": "modules that are saved whole are not supported, only low-rank ones",
    "bias": "biases are not supported",
    "lora_bias": "biases are not supported",
    "rank_pattern": "every module must have the rank 'r'",
    "alpha_pattern": "every module must have the same 'lora_alpha'",
    "fan_in_fan_out": "weights that are stored transposed are not supported",
    "layer_replication": "layers that are repeated are not supported",
    "trainable_token_indices": "token embeddings cannot be changed by an adapter here",
    "target_parameters": "parameters outside of linear modules are not supported",
    "alora_invocation_tokens": "activated LoRA is not supported by the engine",
    "use_qalora": "QALoRA is not supported by the engine",
    "use_bdlora": "block-diagonal LoRA is not supported by the engine",
}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {"bias": ("none",)}
_INITIAL_ONLY = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Ways to begin the training that leave the base model's own weights as they are, as vLLM has them."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What of the configuration counts. ``targets`` is None where it is a pattern: then the tensors tell."""

    rank: int
    alpha: float
    rank_stabilized: bool
    targets: frozenset[str] | None


def read_config(raw: bytes) -> PeftConfig:
    """Read a PEFT configuration. Raises `InvalidAdapter` unless its LoRA adapter can be served."""
    try:
        options = json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise _fault("adapter_config.json is not valid JSON.") from None
    if not isinstance(options, dict):
        raise _fault("adapter_config.json is not a JSON object.")
    if options.get("peft_type") != "LORA":
        raise _fault(f"'peft_type' must be LORA, not {shown(str(options.get('peft_type')), 32)}.")
    if options.get("task_type") not in (None, "CAUSAL_LM"):
        raise _fault(f"'task_type' must be CAUSAL_LM, not {shown(str(options['task_type']), 32)}.")
    _check_others(options)
    _check_beginning(options.get("init_lora_weights"))
    stabilized = options.get("use_rslora") or False
    if not isinstance(stabilized, bool):
        raise _fault("'use_rslora' must be true or false.")
    return PeftConfig(_rank(options), _alpha(options), stabilized, _targets(options.get("target_modules")))


def canonical(config: PeftConfig, modules: Iterable[str]) -> bytes:
    """The configuration as it is kept, and as an engine reads it: with nothing in it that was not checked."""
    options = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rank_stabilized,
        "target_modules": sorted(modules),
        "bias": "none",
        "inference_mode": True,
    }
    return json.dumps(options, indent=1).encode()


def _check_others(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in _READ or name in _WITHOUT_EFFECT:
            continue
        if not value or value in _NEUTRAL.get(name, ()):
            continue
        reason = _REASONS.get(name, "this gateway does not know what it would change")
        raise _fault(f"'{shown(name, 64)}' cannot be served: {reason}.")


def _check_beginning(way: Any) -> None:
    if isinstance(way, str) and way.lower() not in _INITIAL_ONLY:
        raise _fault(
            f"'init_lora_weights' {shown(way, 32)} changes the base model's weights. Convert the adapter "
            "with PEFT's path_initial_model_for_weight_conversion."
        )


def _rank(options: Mapping[str, Any]) -> int:
    rank = options.get("r")
    if type(rank) is not int or rank < 1:
        raise _fault("'r' must be a whole number of at least 1.")
    return rank


def _alpha(options: Mapping[str, Any]) -> float:
    alpha = options.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or abs(alpha) > 1e6 or math.isnan(alpha):
        raise _fault("'lora_alpha' must be a number of at most a million.")
    return alpha


def _targets(value: Any) -> frozenset[str] | None:
    if isinstance(value, str):
        return None
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise _fault("'target_modules' must be a list of names of modules.")
    return frozenset(value)


def _fault(message: str) -> InvalidAdapter:
    return InvalidAdapter(message, "config")
