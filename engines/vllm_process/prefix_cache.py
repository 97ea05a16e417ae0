"""What the prefix cache of the engine core in this process claims to hold.

An engine that sleeps gives the memory of its KV cache back. A prefix cache that still claimed a block would
answer the next request that begins alike with zeros in the place of its keys and values, and no canary would
see it: the canary's prompt is shorter than a block. vLLM offers no question for it, so the pools of blocks
are remembered as they are made. Must be installed before vLLM makes its scheduler.
"""

import weakref
from typing import Any

from vllm.v1.core.block_pool import BlockPool

_pools: "weakref.WeakSet[Any]" = weakref.WeakSet()


def install() -> None:
    """Remember every pool of blocks that is made from now on."""
    initialize = BlockPool.__init__

    def remembered(pool: Any, *arguments: Any, **options: Any) -> None:
        initialize(pool, *arguments, **options)
        _pools.add(pool)

    BlockPool.__init__ = remembered


def claimed_blocks() -> int:
    """How many blocks a request could be answered from without computing them."""
    return sum(len(pool.cached_block_hash_to_block) for pool in _pools)
