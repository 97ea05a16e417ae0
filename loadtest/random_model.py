"""Llama-shaped models with random weights: ``python -m loadtest random-model 1.7b [FOLDER]``.

For measurements and tests that depend on a model's size and not on what it says. The weights are bf16 and
uniformly distributed with the standard deviation ``initializer_range``; every page of them differs, so
nothing is saved by storing equal pages once. The tokenizer is that of another model folder. A seed always
gives the same bytes. Weights are written tensor by tensor, in shards of at most 2 GB as the Hub's are.

File format: https://huggingface.co/docs/safetensors (a little-endian u64 with the header's length, the header
in JSON, the tensors).
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "models" / "smollm2-135m"
MODELS = ROOT / "models" / "random"

SHARD_BYTES = 2 * 10**9
_ITEM = 2
_DEVIATION = 0.02
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
_PIECE = 1 << 22


@dataclass(frozen=True, slots=True)
class Shape:
    """What a Llama is made of. The embedding is also the projection to the vocabulary."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 49152
    positions: int = 8192

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, as transformers' `LlamaForCausalLM` names them."""
        kv = self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            yield f"{name}.input_layernorm.weight", (self.hidden,)
            yield f"{name}.self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{name}.self_attn.k_proj.weight", (kv, self.hidden)
            yield f"{name}.self_attn.v_proj.weight", (kv, self.hidden)
            yield f"{name}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{name}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{name}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield f"{name}.mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield f"{name}.mlp.down_proj.weight", (self.hidden, self.intermediate)
        yield "model.norm.weight", (self.hidden,)

    def parameters(self) -> int:
        """How many numbers all tensors hold."""
        return sum(prod(shape) for _, shape in self.tensors())

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "initializer_range": _DEVIATION,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }


SHAPES = {
    "tiny": Shape(hidden=128, intermediate=384, layers=2, heads=4, kv_heads=2),
    "0.5b": Shape(hidden=1024, intermediate=4864, layers=26, heads=16, kv_heads=4),
    "1.7b": Shape(hidden=2048, intermediate=8192, layers=24, heads=32, kv_heads=32),
    "3b": Shape(hidden=3072, intermediate=8192, layers=28, heads=24, kv_heads=8),
}
"""By size. 1.7b and 3b have the shapes of SmolLM2-1.7B and, but for the vocabulary, of Llama 3.2 3B."""


def write_model(
    shape: Shape,
    folder: Path,
    *,
    seed: int = 0,
    tokenizer: Path = TOKENIZER,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a complete checkpoint into a new folder. Raises FileExistsError, FileNotFoundError, OSError."""
    if not (tokenizer / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{tokenizer} has no tokenizer.json: make the default model first (make setup)"
        )
    draft = folder.with_name(f".{folder.name}.new")
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name in _TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, draft / name)
    (draft / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    shards = list(_shards(shape, shard_bytes))
    names = [_shard_name(number, len(shards)) for number in range(len(shards))]
    first = 0
    for name, tensors in zip(names, shards, strict=True):
        with (draft / name).open("wb") as file:
            _write_shard(file, tensors, seed, first)
        first += len(tensors)
    if len(shards) > 1:
        placed = {tensor: name for name, part in zip(names, shards, strict=True) for tensor, _ in part}
        index = {"metadata": {"total_size": shape.parameters() * _ITEM}, "weight_map": placed}
        (draft / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    draft.rename(folder)


def _shards(shape: Shape, shard_bytes: int) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    part: list[tuple[str, tuple[int, ...]]] = []
    size = 0
    for name, tensor in shape.tensors():
        length = prod(tensor) * _ITEM
        if part and size + length > shard_bytes:
            yield part
            part, size = [], 0
        part.append((name, tensor))
        size += length
    yield part


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_shard(
    file: BinaryIO, tensors: Sequence[tuple[str, tuple[int, ...]]], seed: int, first: int
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors:
        end = offset + prod(shape) * _ITEM
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for number, (name, shape) in enumerate(tensors, start=first):
        if name.endswith("norm.weight"):
            file.write(_bfloat16(np.ones(shape, np.float32)))
            continue
        random = np.random.Generator(np.random.SFC64([seed, number]))
        left = prod(shape)
        while left:
            count = min(left, _PIECE)
            file.write(_bfloat16(_uniform(random, count)))
            left -= count


def _uniform(random: np.random.Generator, count: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    steps = np.frombuffer(random.bytes(count * 2), "<i2")
    return steps.astype(np.float32) * np.float32(_DEVIATION * sqrt(3) / 2**15)


def _bfloat16(values: "np.ndarray[Any, np.dtype[np.float32]]") -> bytes:
    """The upper halves of the numbers, rounded to nearest."""
    bits = values.view(np.uint32) + np.uint32(0x8000)
    return (bits >> 16).astype("<u2").tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("size", choices=SHAPES, help="how many parameters it has")
    parser.add_argument("folder", nargs="?", type=Path, help="a new folder (default: models/random/SIZE)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of the model that has it")
    options = parser.parse_args()
    folder = options.folder or MODELS / options.size
    shape = SHAPES[options.size]
    try:
        write_model(shape, folder, seed=options.seed, tokenizer=options.tokenizer)
    except OSError as error:
        parser.error(str(error))
    print(f"{folder}: {shape.parameters() / 1e9:.2f} B parameters")


if __name__ == "__main__":
    main()
