"""Small LoRA adapters in PEFT's format, made without PEFT: for tests and for load.

The format: ``adapter_config.json`` as ``peft.LoraConfig`` writes it, and ``adapter_model.safetensors`` with
two tensors for each module, ``base_model.model.{module}.lora_A.weight`` [rank, inputs] and ``.lora_B.weight``
[outputs, rank]. The change of the module's weights is ``alpha / rank * B @ A``. These are not trained: random
ones of enough strength answer in words of their own, the same for the same seed.

    python loadtest/adapter_files.py models/smollm2-135m DIR --seed 1
"""

import argparse
import io
import json
import math
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODULES = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
_PARENTS = {"gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}
Tensors = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def make_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int,
    rank: int = 8,
    strength: float = 0.5,
    modules: Sequence[str] = MODULES,
) -> Path:
    """Write both files into the folder, which it makes; returns the folder.

    ``base`` is the folder of a model built as Llama is. ``strength``: the size of each module's change,
    measured against that of weights whose outputs are as large as their inputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapter_tensors(base, seed=seed, rank=rank, strength=strength, modules=modules)
    (folder / WEIGHTS).write_bytes(safetensors_bytes(tensors))
    (folder / CONFIG).write_text(json.dumps(adapter_config(rank=rank, modules=modules)))
    return folder


def upload(http: httpx.Client, key: str, folder: Path, base_model: str, suffix: str) -> str:
    """Upload the adapter in the folder to a gateway; its name. Raises AssertionError where it is refused."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        archive.add(folder, "adapter")
    answer = http.post(
        "/v1/torpor/adapters",
        headers={"authorization": f"Bearer {key}"},
        data={"base_model": base_model, "suffix": suffix},
        files={"file": ("adapter.tar", raw.getvalue())},
    )
    if answer.is_error:
        raise AssertionError(f"adapter {suffix} was refused: {answer.text}")
    name: str = answer.json()["id"]
    return name


def adapter_config(*, rank: int, modules: Sequence[str] = MODULES, **changes: Any) -> dict[str, Any]:
    """What PEFT 0.21 writes for ``LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules)``."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "models/base",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 2 * rank,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(modules),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        **changes,
    }


def adapter_tensors(
    base: Path, *, seed: int, rank: int = 8, strength: float = 0.5, modules: Sequence[str] = MODULES
) -> Tensors:
    """The tensors of an adapter with ``lora_alpha`` twice the rank, by name."""
    configuration = json.loads((base / "config.json").read_bytes())
    chance = np.random.default_rng(seed)
    tensors: Tensors = {}
    for layer in range(configuration["num_hidden_layers"]):
        for module in modules:
            inputs, outputs = _shape(configuration, module)
            name = f"base_model.model.model.layers.{layer}.{_PARENTS.get(module, 'self_attn')}.{module}"
            a = chance.standard_normal((rank, inputs)) / math.sqrt(inputs)
            b = chance.standard_normal((outputs, rank)) * (strength / 2 / math.sqrt(rank))
            tensors[f"{name}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = b.astype(np.float32)
    return tensors


def _shape(configuration: Mapping[str, Any], module: str) -> tuple[int, int]:
    hidden, inner = configuration["hidden_size"], configuration["intermediate_size"]
    head = configuration.get("head_dim") or hidden // configuration["num_attention_heads"]
    queries = configuration["num_attention_heads"] * head
    keys = configuration["num_key_value_heads"] * head
    shapes = {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    return shapes[module]


def safetensors_bytes(tensors: Tensors) -> bytes:
    """A safetensors file of float32."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, at = [], 0
    for name, tensor in tensors.items():
        data = tensor.astype("<f4").tobytes()
        entry = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + len(data)]}
        header[name] = entry
        parts.append(data)
        at += len(data)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + b"".join(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a small LoRA adapter in PEFT's format.")
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("folder", type=Path, help="where the two files go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--strength", type=float, default=0.5)
    given = parser.parse_args()
    print(make_adapter(given.folder, given.base, seed=given.seed, rank=given.rank, strength=given.strength))


if __name__ == "__main__":
    main()
