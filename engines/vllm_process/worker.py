"""What runs in the engine's worker processes on our behalf, called through vLLM's ``collective_rpc``."""

import gc
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from vllm.platforms import current_platform

from engines.vllm_process import grammar_compiler, logprobs, lora_files, lora_ops, memory, prefix_cache

logprobs.install()
prefix_cache.install()
if torch.device(current_platform.device_type).type == "cpu":
    lora_ops.install()  # vLLM imports this module before it makes the model


_OCCUPIED_S = 0.003


class WorkerExtension:
    """Mixed into vLLM's worker (``--worker-extension-cls``). Names must not clash with the worker's own."""

    model_runner: Any

    def torpor_memory(self) -> dict[str, int]:
        """What this worker holds: resident bytes, those of its KV cache, objects that Python tracks."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "pid": os.getpid(),
            "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
            "kv_cache_bytes": sum(self._kv_storages().values()),
            "tracked_objects": len(gc.get_objects()),
        }

    def torpor_drop_kv_cache(self) -> int:
        """Give the KV cache's memory back to the system, its content with it. Returns the bytes.

        The prefix cache must have been emptied before. The pages come back as zeros when they are used.
        """
        grammar_compiler.quiet()
        dropped = 0
        for address, length in self._kv_storages().items():
            first, size = memory.whole_pages(address, length)
            if size:
                memory.drop(first, size)
            dropped += size
        memory.trim()
        return dropped

    def torpor_occupy(self) -> None:
        """Keep the engine core busy while requests that belong into one batch are on their way to it."""
        time.sleep(_OCCUPIED_S)

    def torpor_write_adapter(self, folder: str) -> None:
        """An adapter of zeros for every module that may have one, as PEFT writes it, rank 1."""
        manager = self.model_runner.model.lora_manager
        lora_files.write_zeros(Path(folder), manager.modules, manager.packed_modules_mapping)

    def _kv_storages(self) -> dict[int, int]:
        """Length in bytes by address."""
        storages = (tensor.untyped_storage() for tensor in getattr(self.model_runner, "kv_caches", ()))
        return {storage.data_ptr(): storage.nbytes() for storage in storages}

    def torpor_claimed_blocks(self) -> int:
        """Blocks that the prefix cache claims to hold, where the engine core is this process."""
        return prefix_cache.claimed_blocks()

    def torpor_wake(self) -> int:
        """New random numbers: replicas of one snapshot would otherwise draw the same ones.

        Returns the blocks that the prefix cache claims to hold: their memory was given back.
        """
        memory.populate()
        seed = int.from_bytes(os.urandom(4))
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        return prefix_cache.claimed_blocks()
