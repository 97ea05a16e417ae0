"""What an engine of a model needs of the host's memory, in a form that can be shown."""

from dataclasses import dataclass
from typing import Any

GIB = 1 << 30
PROCESS_BYTES = 1_500_000_000
"""What an engine needs beside its weights and its KV cache: Python, vLLM, PyTorch, buffers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """The arithmetic of one model's engine. Sizes in bytes, lengths in tokens; None is unknown.

    ``dtype_reason`` tells why the engine computes in ``dtype``, ``notes`` what was chosen otherwise than the
    model's files say. ``limit_bytes`` is what all engines together may use.
    """

    dtype: str
    dtype_reason: str
    weights_bytes: int
    weights_exact: bool
    token_bytes: int | None
    block_tokens: int | None
    kv_cache_bytes: int
    capacity_tokens: int | None
    max_model_len: int | None
    model_length: int | None
    limit_bytes: int
    quantization: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """What the engine needs in all."""
        return self.weights_bytes + self.kv_cache_bytes + PROCESS_BYTES

    def text(self) -> str:
        """The arithmetic in a line."""
        return (
            f"{weights_text(self.weights_bytes, self.dtype, self.quantization, exact=self.weights_exact)} + "
            f"{self._cache_text()} + {gib(PROCESS_BYTES)} process = {gib(self.total_bytes)} "
            f"of {gib(self.limit_bytes)}"
        )

    def _cache_text(self) -> str:
        length = "unknown" if self.max_model_len is None else f"{self.max_model_len:,} tokens"
        if self.token_bytes == 0:
            return f"no KV cache (longest input {length})"
        if self.token_bytes is None or self.capacity_tokens is None:
            return f"{gib(self.kv_cache_bytes)} KV cache (bytes per token unknown, longest sequence {length})"
        return (
            f"{gib(self.kv_cache_bytes)} KV cache ({self.capacity_tokens:,} tokens of "
            f"{per_token(self.token_bytes)}, longest sequence {length})"
        )

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "dtype": self.dtype,
            "dtype_reason": self.dtype_reason,
            "quantization": self.quantization,
            "weights_bytes": self.weights_bytes,
            "weights_exact": self.weights_exact,
            "kv_bytes_per_token": self.token_bytes,
            "kv_block_tokens": self.block_tokens,
            "kv_cache_bytes": self.kv_cache_bytes,
            "kv_cache_tokens": self.capacity_tokens,
            "max_model_len": self.max_model_len,
            "model_length": self.model_length,
            "process_bytes": PROCESS_BYTES,
            "total_bytes": self.total_bytes,
            "limit_bytes": self.limit_bytes,
            "notes": list(self.notes),
        }


def gib(size: float) -> str:
    """Bytes as GiB, or as MiB if they are few."""
    return f"{size / GIB:.2f} GiB" if abs(size) >= 100 << 20 else f"{size / (1 << 20):.1f} MiB"


def per_token(size: float) -> str:
    """Bytes of KV cache per token."""
    return f"{size / 1024:.1f} KiB"


def weights_text(size: int, dtype: str, quantization: str | None, *, exact: bool) -> str:
    """The bytes of the weights, and in which form they are."""
    form = f"{quantization}, computed in {dtype}" if quantization else dtype
    return f"{'' if exact else 'about '}{gib(size)} weights ({form})"
