"""What a model takes and gives, read from its files: media, vectors of which size, token ids."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.spec import ModelSpec, Task, TokenArrays
from metering.tokenizers.counter import TokenCounter

_MEDIA_KEYS = (
    "vision_config", "audio_config", "vision_tower", "mm_vision_tower", "image_token_id", "image_token_index",
    "audio_token_id", "video_token_id", "visual", "thinker_config",
)  # fmt: skip
_SIZES = ("hidden_size", "n_embd", "d_model", "dim")
_OPENAI_IDS = {
    "tiktoken is great!": [83, 1609, 5963, 374, 2294, 0],
    "antidisestablishmentarianism": [519, 85342, 34500, 479, 8997, 2191],
    "2 + 2 = 4": [17, 489, 220, 17, 284, 220, 19],
}
"""Texts in cl100k_base, the encoding of every embedding model of OpenAI's.

Source: the OpenAI Cookbook, "How to count tokens with tiktoken".
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a model takes and gives.

    ``takes_media``: images, audio or video beside text. ``vector_size``: numbers of its embeddings, None if
    it is not known; ``shortens``: it gives shorter ones if asked to. ``takes_token_arrays``: token ids as
    the input of embeddings. ``takes_tools``: requests may have tools.
    """

    takes_media: bool = True
    vector_size: int | None = None
    shortens: bool = True
    takes_token_arrays: bool = True
    takes_tools: bool = True


def read_traits(spec: ModelSpec, counter: TokenCounter | None) -> Traits:
    """The traits of a local model from its files; another server judges for itself what its models take."""
    chosen = spec.token_arrays
    if spec.source is None:
        return Traits(takes_token_arrays=chosen is not TokenArrays.REFUSE)
    configuration = _read(spec.source / "config.json")
    arguments = " ".join(spec.engine_args)
    embeds = spec.task is Task.EMBED
    takes_token_arrays = chosen is not TokenArrays.REFUSE
    if embeds and chosen is None:
        takes_token_arrays = _has_openai_ids(counter)
    return Traits(
        takes_media=any(configuration.get(key) is not None for key in _MEDIA_KEYS),
        vector_size=_vector_size(spec.source, configuration) if embeds else None,
        shortens=bool(configuration.get("matryoshka_dimensions") or configuration.get("is_matryoshka"))
        or "matryoshka" in arguments,
        takes_token_arrays=takes_token_arrays,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _vector_size(source: Path, configuration: dict[str, Any]) -> int | None:
    """The model's hidden size, or what the last dense layer of sentence-transformers makes of it."""
    layers = sorted(source.glob("*_Dense/config.json"), key=lambda path: int(path.parent.name.split("_")[0]))
    if layers:
        size = _read(layers[-1]).get("out_features")
    else:
        text = configuration.get("text_config")
        parts = (configuration, text if isinstance(text, dict) else {})
        size = next((part[name] for part in parts for name in _SIZES if name in part), None)
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _has_openai_ids(counter: TokenCounter | None) -> bool:
    """Whether the model's vocabulary gives OpenAI's ids the same meaning, as Llama 3's does."""
    return counter is not None and all(
        counter.encode(text, add_special_tokens=False) == ids for text, ids in _OPENAI_IDS.items()
    )
