"""What runs in the engine's worker processes on our behalf, called through ``/collective_rpc``."""

import gc
import os
from pathlib import Path
from typing import Any


class WorkerExtension:
    """Mixed into vLLM's worker (``--worker-extension-cls``). Names must not clash with the worker's own."""

    model_runner: Any

    def torpor_memory(self) -> dict[str, int]:
        """Bytes of this worker: resident, weights, KV cache; and the number of objects that Python tracks."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        weights = sum(p.numel() * p.element_size() for p in self.model_runner.get_model().parameters())
        caches: dict[int, int] = {}
        for tensor in getattr(self.model_runner, "kv_caches", ()):
            storage = tensor.untyped_storage()
            caches[storage.data_ptr()] = storage.nbytes()
        return {
            "pid": os.getpid(),
            "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
            "weights_bytes": int(weights),
            "kv_cache_bytes": sum(caches.values()),
            "tracked_objects": len(gc.get_objects()),
        }
