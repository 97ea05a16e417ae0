"""An adapter that changes nothing, in PEFT's format. Runs in the engine's worker."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def write_zeros(folder: Path, modules: Mapping[str, Any], packed: Mapping[str, Sequence[str]]) -> None:
    """Both files, rank 1. ``modules``: vLLM's layers with LoRA by name; ``packed``: what each stands for.

    A layer that is not understood is left out: the adapter need not be whole.
    """
    tensors: dict[str, torch.Tensor] = {}
    targets: set[str] = set()
    for name, module in modules.items():
        a, b = module.lora_a_stacked, module.lora_b_stacked
        parent, _, last = name.rpartition(".")
        parts = packed.get(last, (last,))
        if not isinstance(a, tuple) or len(a) != len(parts):
            continue
        for part, its_a, its_b in zip(parts, a, b, strict=True):
            prefix = f"base_model.model.{parent}.{part}"
            tensors[f"{prefix}.lora_A.weight"] = torch.zeros(1, its_a.shape[-1], dtype=its_a.dtype)
            tensors[f"{prefix}.lora_B.weight"] = torch.zeros(its_b.shape[-2], 1, dtype=its_b.dtype)
            targets.add(part)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": sorted(targets)}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "bias": "none"}))
