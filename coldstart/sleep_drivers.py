"""How a platform puts a tree of processes to sleep without ending it, and what else it can do.

Two drivers of one interface. On the CPU a paused tree is frozen (SIGSTOP for all of it: unlike the first
version of the kernel's freezer it lets SIGKILL through) after it has given its KV cache back, and CRIU can
dump it. On a GPU vLLM's own sleep mode moves the weights to the host's memory and frees the rest; snapshots
are not supported there: CRIU cannot dump a process that holds a GPU. The GPU's driver was never run.
"""

import signal
from typing import Protocol

from coldstart.tiers import SleepTier


class Tree(Protocol):
    """What a driver needs of an engine."""

    async def control(self, what: str) -> None: ...
    async def signal_all(self, number: int) -> None: ...


class SleepDriver(Protocol):
    """``tiers``: in which an engine can sleep, beside having nothing (``COLD``)."""

    tiers: frozenset[SleepTier]

    async def pause(self, tree: Tree) -> None: ...
    async def resume(self, tree: Tree) -> None: ...


class CpuDriver:
    """Freezes the tree."""

    tiers = frozenset({SleepTier.PAUSED, SleepTier.SNAPSHOT})

    async def pause(self, tree: Tree) -> None:
        """No request may run."""
        await tree.control("sleep")
        await tree.signal_all(signal.SIGSTOP)

    async def resume(self, tree: Tree) -> None:
        """Wake the engine; it answers again when this has returned."""
        await tree.signal_all(signal.SIGCONT)


class CudaDriver:
    """vLLM's sleep mode, level 1: weights in the host's memory, no KV cache."""

    tiers = frozenset({SleepTier.PAUSED})

    async def pause(self, tree: Tree) -> None:
        """No request may run."""
        await tree.control("offload")

    async def resume(self, tree: Tree) -> None:
        """Wake the engine; it answers again when this has returned."""
        await tree.control("reload")
