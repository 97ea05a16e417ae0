"""The longest sequence that a model is made for, as vLLM derives it from the files (vllm/config/model.py)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.checkpoint import text_configuration

# The names under which configurations keep it; the smallest value counts.
_LENGTHS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
# Scalings of positions whose factor the length includes already.
_INCLUDED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
_SENTENCE_FILES = (
    "sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
    "sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)  # fmt: skip


def derived_length(folder: Path, configuration: Mapping[str, Any], *, pooling: bool) -> int | None:
    """In tokens; None if the files do not tell."""
    for name in _SENTENCE_FILES:
        # sentence-transformers' own limit goes before the model's.
        if (limit := _length(_object(folder / name), "max_seq_length")) is not None:
            return limit
    text = text_configuration(configuration)
    lengths = _lengths(text) or _lengths(configuration)
    if not lengths:
        return None
    length = _length(text, "model_max_length") or min(lengths)
    if pooling and text.get("position_embedding_type") == "absolute":
        length = min(length, _length(_object(folder / "tokenizer_config.json"), "model_max_length") or length)
    scalings = list(_scalings(text))
    if any(kind == "longrope" for kind, _ in scalings):
        return _length(configuration, "original_max_position_embeddings") or length
    if "gemma3" in str(configuration.get("model_type")):
        return length
    factors = [factor for kind, factor in scalings if kind not in _INCLUDED]
    return int(length * (factors[-1] if factors else 1.0))


def _lengths(part: Mapping[str, Any]) -> list[int]:
    return [length for name in _LENGTHS if (length := _length(part, name)) is not None]


def _scalings(text: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The kind and the factor of each scaling of positions."""
    for name in ("rope_parameters", "rope_scaling"):
        outer = text.get(name)
        if not isinstance(outer, dict):
            continue
        nested = [part for part in outer.values() if isinstance(part, dict)]
        for part in nested or [outer]:
            kind = part.get("rope_type", part.get("type", "default"))
            factor = part.get("factor")
            yield str(kind), float(factor) if isinstance(factor, int | float) else 1.0


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _length(part: Mapping[str, Any], name: str) -> int | None:
    value = part.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
