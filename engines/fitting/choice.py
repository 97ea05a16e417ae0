"""The choice of KV cache, longest sequence and data type with which a model's engine fits into the memory.

All of it is computed from the model's files before anything is started, and depends on nothing that changes
from one start to the next: what was chosen is part of a snapshot's manifest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from engines import host_memory
from engines.checkpoint import DTYPE_BYTES, ModelFiles, read_model
from engines.engine_arguments import number, option
from engines.errors import InvalidModel
from engines.fitting.data_type import DataType, set_data_type
from engines.fitting.kv_layout import KvLayout, kv_layout
from engines.fitting.step_size import step_tokens
from engines.lengths import derived_length
from engines.pool.memory_budget import default_limit
from engines.sizing import GIB, PROCESS_BYTES, Sizing, gib, per_token, weights_text
from engines.spec import DEFAULT_KV_CACHE, ModelSpec, Task
from engines.wire import on_cpu

USEFUL_LENGTH = 512
"""A model is refused if there is not even room for a sequence of so many tokens."""

_NO_CACHE_BYTES = 1 << 20  # vLLM wants a size, also for a model that keeps nothing
# Tokens for each sequence that runs beside the longest one, if there is room.
_RUNNING_LENGTH = 1024
# Options that change what the files say.
_OTHER_MODELS = (
    "--hf-overrides", "--speculative-config", "--num-gpu-blocks-override", "--hf-config-path",
    "--load-format", "--tensor-parallel-size", "-tp", "--kv-transfer-config", "--disable-sliding-window",
    "--disable-hybrid-kv-cache-manager",
)  # fmt: skip
# vllm/config/model.py, `_FLOAT16_NOT_SUPPORTED_MODELS`.
_NO_FLOAT16 = frozenset(("gemma2", "gemma3", "gemma3_text", "glm4"))

ChooseDataType = Callable[[ModelSpec, ModelFiles], DataType]


class ModelMisfit(InvalidModel):
    """A model cannot be served as it is configured on this machine. ``key``: of its table, what to change."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What is set for the engine: by the configuration, or by ``engine_args``, which win."""

    length: int | None
    cache_bytes: int | None
    cache_element_bytes: int | None

    @classmethod
    def of(cls, spec: ModelSpec) -> "_Wishes":
        args = spec.engine_args
        length = spec.max_model_len
        if option(args, "--max-model-len") is not None:
            length = number(args, "--max-model-len")  # None: "auto"
        kind = option(args, "--kv-cache-dtype") or "auto"
        element = 1 if kind.startswith(("fp8", "int8")) else DTYPE_BYTES.get(kind)
        return cls(length, number(args, "--kv-cache-memory-bytes") or spec.memory_bytes or None, element)


def fitted(spec: ModelSpec, limit_bytes: int | None, choose: ChooseDataType) -> ModelSpec:
    """The spec with what was chosen, and with the arithmetic as its ``sizing``.

    ``limit_bytes``: what all engines together may use; None for the default. A remote model, and one on a
    GPU, whose memory vLLM divides by itself, is returned as it is. Raises `InvalidModel`, `ModelMisfit`.
    """
    if spec.source is None or spec.remote or not on_cpu():
        return spec
    files = read_model(spec.source, spec.id)
    limit = default_limit() if limit_bytes is None else min(limit_bytes, host_memory.total_bytes())
    dtype = choose(spec, files)
    sizing = _size_of(spec, files, dtype, limit)
    cache_bytes = _Wishes.of(spec).cache_bytes or sizing.kv_cache_bytes or _NO_CACHE_BYTES
    prefill_s = dtype.prefill_s.get(sizing.dtype)
    step = None
    if prefill_s is not None and option(spec.engine_args, "--max-num-batched-tokens") is None:
        step = step_tokens(files, prefill_s, sizing.max_model_len, spec.max_step_ms, spec.max_running)
    return replace(
        spec,
        dtype=sizing.dtype,
        memory_bytes=cache_bytes,
        max_model_len=sizing.max_model_len,
        step_tokens=step,
        sizing=sizing,
    )


def require_fit(spec: ModelSpec, limit_bytes: int | None) -> None:
    """As `fitted`, with no measurement: by the data type that takes the least. Raises likewise."""
    smallest = DataType("bfloat16", "")
    fitted(spec, limit_bytes, lambda model, files: set_data_type(model, files) or smallest)


def _size_of(spec: ModelSpec, files: ModelFiles, dtype: DataType, limit: int) -> Sizing:
    """With float32 only if that was not merely measured to be faster, or costs nothing in length."""
    if dtype.name != "float32" or dtype.float32_speedup is None:
        return _Fit(spec, files, dtype, limit).sizing()
    smaller = replace(dtype, name="bfloat16")
    small = _Fit(spec, files, smaller, limit).sizing()
    try:
        sizing = _Fit(spec, files, dtype, limit).sizing()
    except ModelMisfit:
        why = "does not fit"
    else:
        if sizing.max_model_len == small.max_model_len:
            return sizing
        why = f"leaves room for sequences of {sizing.max_model_len:,} tokens only"
    return replace(small, dtype_reason=f"{dtype.reason}, but {why}")


class _Fit:
    """The arithmetic for one model in one data type."""

    def __init__(self, spec: ModelSpec, files: ModelFiles, dtype: DataType, limit: int) -> None:
        self._spec = spec
        self._files = files
        self._dtype = dtype
        self._limit = limit
        self._wishes = _Wishes.of(spec)
        self._element = self._wishes.cache_element_bytes or DTYPE_BYTES.get(dtype.name, 2)
        self._weights = files.weights.size(dtype.name)
        self._layout = self._read_layout()
        pooling = spec.task is Task.EMBED
        self._own_length = (
            None if spec.source is None else derived_length(spec.source, files.configuration, pooling=pooling)
        )
        self._notes: list[str] = []

    def _read_layout(self) -> KvLayout | None:
        args = self._spec.engine_args
        if any(option(args, name) is not None for name in _OTHER_MODELS):
            return None
        return kv_layout(
            self._files.configuration,
            pooling=self._spec.task is Task.EMBED,
            block_tokens=number(args, "--block-size"),
            batch_tokens=number(args, "--max-num-batched-tokens"),
        )

    def sizing(self) -> Sizing:
        """Choose data type, length and KV cache. Raises `ModelMisfit`."""
        self._require_data_type()
        length = self._length()
        cache_bytes, length = self._cache(length)
        layout = self._layout
        capacity = (
            None if layout is None or not length else layout.capacity(cache_bytes, self._element, length)
        )
        sizing = Sizing(
            dtype=self._dtype.name,
            dtype_reason=self._dtype.reason,
            weights_bytes=self._weights,
            weights_exact=self._files.weights.exact,
            token_bytes=None if layout is None else layout.token_bytes(self._element),
            block_tokens=layout.block_tokens if layout is not None and layout.needed else None,
            kv_cache_bytes=cache_bytes,
            capacity_tokens=capacity,
            max_model_len=length,
            model_length=self._own_length,
            limit_bytes=self._limit,
            quantization=self._files.quantization,
            notes=tuple(self._notes),
        )
        if sizing.total_bytes > self._limit:
            key = "kv_cache_gib" if self._wishes.cache_bytes and cache_bytes else "source"
            raise self._misfit(cache_bytes, f"the KV cache of {gib(cache_bytes)}", key)
        return sizing

    def _require_data_type(self) -> None:
        kind = self._files.text.get("model_type")
        if self._dtype.name == "float16" and kind in _NO_FLOAT16:
            raise ModelMisfit(
                f"model {self._spec.id}: {kind} models are not stable in float16; take bfloat16 or float32",
                "dtype",
            )

    def _length(self) -> int | None:
        """The longest sequence that is wished for."""
        wish, own_length = self._wishes.length, self._own_length
        if wish is not None and own_length is not None and self._layout is not None and wish > own_length:
            raise ModelMisfit(
                f"model {self._spec.id}: max_model_len is {wish:,}, and the model is made for sequences "
                f"of at most {own_length:,} tokens (config.json); lower it, or leave it out",
                "max_model_len",
            )
        return wish or own_length

    def _cache(self, length: int | None) -> tuple[int, int | None]:
        """The bytes of KV cache and the longest sequence. Raises `ModelMisfit`."""
        layout, given = self._layout, self._wishes.cache_bytes
        if layout is None or length is None:
            self._notes.append("config.json does not tell how much KV cache a token takes")
            return given or DEFAULT_KV_CACHE, length
        if not layout.needed:
            return 0, length
        room = self._limit - PROCESS_BYTES - self._weights
        available = room if given is None else given
        longest = layout.longest(available, self._element, length)
        fewest = min(length, USEFUL_LENGTH) if self._wishes.length is None else length
        if longest < fewest:
            raise self._too_small(layout, fewest, given)
        if longest < length:
            longest = max(fewest, longest // layout.block_tokens * layout.block_tokens)
            self._notes.append(
                f"max_model_len is {longest:,} of the model's {length:,} tokens: a sequence of {length:,} "
                f"needs {gib(layout.sequence_bytes(length, self._element))} of KV cache, and the room is "
                f"{gib(available)}"
            )
        if given is not None:
            return given, longest
        return self._automatic(layout, longest, room), longest

    def _automatic(self, layout: KvLayout, length: int, room: int) -> int:
        """One sequence of ``length``, and some length for all others, within half of what engines may use."""
        least = layout.sequence_bytes(length, self._element)
        block = layout.block_bytes(self._element)
        others = (self._spec.max_running - 1) * layout.sequence_blocks(min(length, _RUNNING_LENGTH))
        most = min(room, self._limit // 2 - PROCESS_BYTES - self._weights)
        return max(least, min(least + others * block, most // block * block))

    def _too_small(self, layout: KvLayout, length: int, given: int | None) -> ModelMisfit:
        needed = layout.sequence_bytes(length, self._element)
        each = per_token(layout.token_bytes(self._element))
        what = f"{gib(needed)} KV cache for one sequence of {length:,} tokens ({each} per token)"
        if given is None:
            return self._misfit(needed, what, "source" if self._wishes.length is None else "max_model_len")
        return ModelMisfit(
            f"model {self._spec.id} needs {what}, and kv_cache_gib gives it {gib(given)}: raise "
            f"kv_cache_gib to {math.ceil(needed / GIB * 100) / 100:.2f} or more, lower max_model_len, "
            "or leave both out",
            "kv_cache_gib",
        )

    def _misfit(self, cache_bytes: int, what: str, key: str) -> ModelMisfit:
        weights = self._files.weights
        text = weights_text(self._weights, self._dtype.name, self._files.quantization, exact=weights.exact)
        total = self._weights + cache_bytes + PROCESS_BYTES
        shorter = "lower kv_cache_gib or max_model_len, " if total - cache_bytes < self._limit else ""
        return ModelMisfit(
            f"model {self._spec.id} does not fit: {text} + {what} + {gib(PROCESS_BYTES)} process = "
            f"{gib(total)}, and engines may use {gib(self._limit)} ([engines] memory_gib, or four fifths of "
            "the memory of the machine or of its control group): "
            f"raise memory_gib, {shorter}or take a smaller or quantized model",
            key,
        )
