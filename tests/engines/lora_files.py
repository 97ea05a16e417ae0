"""Adapters of smollm2-135m with random weights, as PEFT writes them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

_TARGETS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def write(folder: Path, model: Path, *, seed: int, rank: int = 8, scale: float = 0.02) -> Path:
    """Two files in ``folder``. ``scale``: the standard deviation of B's weights; 0 changes nothing."""
    config = json.loads((model / "config.json").read_bytes())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    sizes = {
        "q_proj": (hidden, hidden),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (hidden, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for part, names in _TARGETS.items():
            for name in names:
                before, after = sizes[name]
                prefix = f"base_model.model.model.layers.{layer}.{part}.{name}"
                a = torch.randn(rank, before, generator=chance) / before**0.5
                b = torch.randn(after, rank, generator=chance) * scale
                tensors[f"{prefix}.lora_A.weight"] = a.to(torch.bfloat16)
                tensors[f"{prefix}.lora_B.weight"] = b.to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [name for names in _TARGETS.values() for name in names]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
