"""What runs in the engine's worker processes on our behalf, called through ``/collective_rpc``."""

import gc
import os
from pathlib import Path
from typing import Any


class WorkerExtension:
    """Mixed into vLLM's worker (``--worker-extension-cls``). Names must not clash with the worker's own."""

    model_runner: Any

    def torpor_memory(self) -> dict[str, int]:
        """What this worker holds: resident bytes, those of its KV cache, objects that Python tracks."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        caches: dict[int, int] = {}
        for tensor in getattr(self.model_runner, "kv_caches", ()):
            storage = tensor.untyped_storage()
            caches[storage.data_ptr()] = storage.nbytes()
        return {
            "pid": os.getpid(),
            "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
            "kv_cache_bytes": sum(caches.values()),
            "tracked_objects": len(gc.get_objects()),
        }
