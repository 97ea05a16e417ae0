"""How many tokens an engine computes in one step, and so for how long a step may keep all others waiting.

Nothing interrupts a step. vLLM computes the next tokens of all running sequences and a part of the waiting
prompts in it, ``--max-num-batched-tokens`` tokens in all. On a CPU a step of 2,048 tokens, the default, takes
seconds. The time of a step is estimated from the measured time of the linear layers
(`engines.fitting.linear_probe`) and from the multiplications of the attention at the longest sequence.
"""

from collections.abc import Mapping
from typing import Any

from engines.checkpoint import ModelFiles
from engines.fitting.kv_layout import BATCH_TOKENS, attention_size

LEAST_TOKENS = 64
"""Below this, what a step costs whatever its size outweighs the rest: it reads all weights."""


def step_tokens(
    files: ModelFiles, prefill_s: float, length: int | None, max_step_ms: float, max_running: int
) -> int | None:
    """The largest power of two of tokens that a step of ``max_step_ms`` holds; None if vLLM's default does.

    ``prefill_s``: seconds of the linear layers for one token of a prompt. ``length``: the longest sequence.
    At least `LEAST_TOKENS`, and one for each sequence that runs, as vLLM demands. A power of two, since what
    is chosen is part of a snapshot, and measurements differ a little.
    """
    token_ms = prefill_s * 1000 * (1 + _attention_share(files, length))
    fewest = max(LEAST_TOKENS, max_running)
    tokens = BATCH_TOKENS
    while tokens * token_ms > max_step_ms and tokens // 2 >= fewest:
        tokens //= 2
    return tokens if tokens < BATCH_TOKENS else None


def _attention_share(files: ModelFiles, length: int | None) -> float:
    """The multiplications of the attention for one token at the longest sequence, by those of the rest."""
    text: Mapping[str, Any] = files.text
    vocabulary = text.get("vocab_size")
    linear = sum(
        rows * columns * count
        for (rows, columns), count in files.weights.matrices.items()
        if rows != vocabulary
    )
    size = attention_size(text)
    return 2 * (length or 0) * size / linear if linear and size else 0.0
