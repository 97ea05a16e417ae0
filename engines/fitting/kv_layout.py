"""How much KV cache a model needs: from its ``config.json``, by the rules of vLLM 0.32 on the CPU.

vLLM hands out blocks of tokens. A layer with full attention keeps all tokens of a sequence; one with a
sliding window keeps those in the window and those of the running batch (vllm/v1/kv_cache_interface.py,
`max_memory_usage_bytes`). Layers of both kinds are divided into groups of equally many layers, which draw
from one pool of blocks (vllm/v1/core/kv_cache_utils.py, `_get_kv_cache_groups_uniform_page_size`). One block
of the pool is never used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.checkpoint import text_configuration

BLOCK_TOKENS = 128
"""Tokens in a block on the CPU unless ``--block-size`` says otherwise (vllm/platforms/cpu.py)."""
BATCH_TOKENS = 2048
"""Tokens in a batch at most: the CPU's default of ``--max-num-batched-tokens``."""

_MLA_BLOCK_TOKENS = 16
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_head_kv",
    "multi_query_group_num",
    "num_attention_groups",
)
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
# Without num_key_value_heads these have as many as attention heads; others have a default of their class.
_MULTI_HEAD = frozenset(
    (
        "llama",
        "gpt2",
        "gpt_neox",
        "gptj",
        "opt",
        "bloom",
        "phi",
        "codegen",
        "stablelm",
        "olmo",
        "cohere",
        "persimmon",
    )
)
_ENCODERS = ("bert", "roberta", "electra", "mpnet", "deberta", "nomic", "gte", "modernbert", "xlm")
# A sign that not every layer keeps keys and values in the usual form.
_OTHER_CACHES = (
    "layers_block_type", "hybrid_override_pattern", "attn_layer_period", "attn_layer_indices",
    "block_configs", "num_kv_shared_layers", "mamba_d_state", "ssm_cfg", "state_size", "rwkv_version",
    "linear_num_key_heads", "linear_attn_config", "attention_chunk_size", "compress_ratios", "index_topk",
    "cross_attention_layers", "rswa_window", "global_head_dim", "num_global_key_value_heads",
    "use_bidirectional_attention", "per_layer_config",
)  # fmt: skip
# By model type: one layer in so many has full attention, and the others the window.
_WINDOW_PATTERNS: Mapping[str, int] = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "cohere2": 4,
    "gpt_oss": 2,
    "olmo3": 4,
}
_DEFAULT_WINDOWS: Mapping[str, int] = {"mistral": 4096}


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """The KV cache of a model: ``full`` layers that keep every token, and ``sliding`` ones with ``window``.

    ``elements``: numbers that one layer keeps of one token. No layers: the model needs no KV cache.
    """

    full: int = 0
    sliding: int = 0
    window: int = 0
    elements: int = 0
    block_tokens: int = BLOCK_TOKENS
    batch_tokens: int = BATCH_TOKENS

    @property
    def needed(self) -> bool:
        """Whether the model keeps anything."""
        return self.full + self.sliding > 0

    def token_bytes(self, element_bytes: int) -> int:
        """Bytes that one token takes in all layers together, while it is inside every window."""
        return (self.full + self.sliding) * self.elements * element_bytes

    def block_bytes(self, element_bytes: int) -> int:
        """Bytes of one block of the pool."""
        return self._group_layers * self.block_tokens * self.elements * element_bytes

    def sequence_blocks(self, tokens: int) -> int:
        """Blocks that a sequence of so many tokens takes."""
        size = self._group_layers or 1
        in_window = min(self.window - 1 + self.batch_tokens, tokens)
        full_blocks = -(-self.full // size) * -(-tokens // self.block_tokens)
        sliding_blocks = -(-self.sliding // size) * (-(-in_window // self.block_tokens) + 1)
        return full_blocks + sliding_blocks

    def sequence_bytes(self, tokens: int, element_bytes: int) -> int:
        """The smallest KV cache that serves a sequence of so many tokens, and the block that stays unused."""
        if not self.needed:
            return 0
        return (self.sequence_blocks(tokens) + 1) * self.block_bytes(element_bytes)

    def longest(self, size: int, element_bytes: int, limit: int) -> int:
        """The longest sequence, of at most ``limit`` tokens, that a KV cache of ``size`` bytes serves."""
        if not self.needed or self.sequence_bytes(limit, element_bytes) <= size:
            return limit
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.sequence_bytes(middle, element_bytes) <= size:
                low = middle
            else:
                high = middle - 1
        return low

    def capacity(self, size: int, element_bytes: int, max_model_len: int) -> int:
        """Tokens of sequences of ``max_model_len`` that fit at once, as vLLM's log counts them."""
        if not self.needed:
            return 0
        blocks = size // self.block_bytes(element_bytes)
        return int(blocks / self.sequence_blocks(max_model_len) * max_model_len)

    @property
    def _group_layers(self) -> int:
        counts = sorted(count for count in (self.full, self.sliding) if count)
        if len(counts) < 2:
            return counts[0] if counts else 0
        fewest, most = counts
        return most if most < fewest * 1.5 else fewest


def kv_layout(
    configuration: Mapping[str, Any], *, pooling: bool, block_tokens: int | None, batch_tokens: int | None
) -> KvLayout | None:
    """The layout, or None if the configuration does not tell. ``pooling``: the model makes embeddings."""
    text = text_configuration(configuration)
    if pooling and _is_encoder(configuration, text):
        return KvLayout()
    if configuration.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        return None
    if any(text.get(key) or configuration.get(key) for key in _OTHER_CACHES) or text.get(
        "num_kv_shared_layers"
    ):
        return None
    layers = _number(text, _LAYERS)
    windows = _windows(text, layers)
    latent = text.get("kv_lora_rank")
    mla = isinstance(latent, int)
    elements = _latent_elements(text, latent) if isinstance(latent, int) else _elements(text)
    if layers is None or windows is None or not elements or (mla and windows[1]):
        return None
    full, sliding, window = windows
    return KvLayout(
        full=full,
        sliding=sliding,
        window=window,
        elements=elements,
        block_tokens=_MLA_BLOCK_TOKENS if mla else block_tokens or BLOCK_TOKENS,
        batch_tokens=batch_tokens or BATCH_TOKENS,
    )


def _is_encoder(configuration: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether the model is an encoder: every token attends to every other one, and nothing is cached."""
    if text.get("is_causal") is False or configuration.get("is_causal") is False:
        return True
    kind = str(configuration.get("model_type") or "").lower()
    names = (name.lower() for name in configuration.get("architectures") or () if isinstance(name, str))
    return any(word in name for name in (kind, *names) for word in _ENCODERS)


def _number(text: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    values = (text.get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)


def _latent_elements(text: Mapping[str, Any], latent: int) -> int | None:
    """Multi-head latent attention keeps one vector for all heads, and the part with the positions."""
    positions = text.get("qk_rope_head_dim")
    return latent + positions if isinstance(positions, int) else None


def _elements(text: Mapping[str, Any]) -> int | None:
    """Keys and values of one token in one layer."""
    attention = text.get("attn_config")
    heads = _number(text, _HEADS)
    kv_heads = _number(text, _KV_HEADS)
    if isinstance(attention, dict):
        kv_heads = _number(attention, ("kv_n_heads",)) or kv_heads
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        kv_heads = 1
    if kv_heads is None and (text.get("model_type") in _MULTI_HEAD or "multi_query" in text):
        kv_heads = heads
    size = _number(text, ("head_dim", "hidden_size_per_head"))
    hidden = _number(text, _HIDDEN)
    if size is None and heads and hidden:
        size = hidden // heads
    return 2 * kv_heads * size if kv_heads and size else None


def attention_size(text: Mapping[str, Any]) -> int | None:
    """Heads times their size, summed over the layers of a language model; None if its file does not tell."""
    layers, heads = _number(text, _LAYERS), _number(text, _HEADS)
    size, hidden = _number(text, ("head_dim", "hidden_size_per_head")), _number(text, _HIDDEN)
    if size is None and heads and hidden:
        size = hidden // heads
    return layers * heads * size if layers and heads and size else None


def _windows(text: Mapping[str, Any], layers: int | None) -> tuple[int, int, int] | None:
    """How many layers keep every token, how many have a sliding window, and the window."""
    if layers is None:
        return None
    kind = str(text.get("model_type") or "")
    window = text.get("sliding_window", _DEFAULT_WINDOWS.get(kind))
    types = text.get("layer_types")
    if isinstance(types, list):
        sliding = types.count("sliding_attention")
        if sliding + types.count("full_attention") != len(types) or len(types) != layers:
            return None
        if sliding == 0:
            return layers, 0, 0
    elif text.get("use_sliding_window"):
        return None
    elif kind in _WINDOW_PATTERNS:
        pattern = text.get("sliding_window_pattern", _WINDOW_PATTERNS[kind])
        sliding = layers - layers // pattern if isinstance(pattern, int) and pattern > 0 else -1
    else:
        sliding = layers
    if "use_sliding_window" in text or kind.startswith(("qwen2", "qwen3")):
        window = window if text.get("use_sliding_window") else None
    if not window:
        return (layers, 0, 0) if kind not in _WINDOW_PATTERNS or "sliding_window" in text else None
    return (layers - sliding, sliding, window) if isinstance(window, int) and sliding >= 0 else None
