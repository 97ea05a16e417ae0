"""Model folders made of a configuration and the header of a safetensors file, whose data is a hole."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1, "F8_E4M3": 1}

LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""1.7 B parameters, and 192 KiB of KV cache for a token in a type of two bytes."""

Tensors = Mapping[str, tuple[str, Sequence[int]]]


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """A file as long as its header says."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + _BYTES[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def llama_tensors(configuration: Mapping[str, Any], dtype: str = "BF16") -> Tensors:
    """The matrices of a Llama."""
    hidden, inner = configuration["hidden_size"], configuration["intermediate_size"]
    size = configuration.get("head_dim") or hidden // configuration["num_attention_heads"]
    kv = size * configuration["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (size * configuration["num_attention_heads"], hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, size * configuration["num_attention_heads"]),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = {
        f"model.layers.{layer}.{name}.weight": (dtype, shape)
        for layer in range(configuration["num_hidden_layers"])
        for name, shape in shapes.items()
    }
    return {"model.embed_tokens.weight": (dtype, (configuration["vocab_size"], hidden)), **layers}


def model_folder(folder: Path, configuration: Mapping[str, Any], tensors: Tensors | None = None) -> Path:
    """Write ``config.json``, a tokenizer and weights into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(configuration))
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(
        folder / "model.safetensors", {"weight": ("BF16", (4, 4))} if tensors is None else tensors
    )
    return folder


def llama_folder(folder: Path, **changes: Any) -> Path:
    """A Llama of 1.7 B parameters with changes to its configuration."""
    configuration = {**LLAMA, **changes}
    return model_folder(folder, configuration, llama_tensors(configuration))
