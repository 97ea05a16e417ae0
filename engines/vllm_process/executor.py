"""vLLM's executor for an engine on the CPU: the model runs in the engine core's own process.

vLLM's CPU platform replaces its executor ``uni`` by ``mp``, whose worker is one more process, since it pins
OpenMP's threads through the environment of that process. Torpor leaves the threads unpinned (several engines
share the cores), so nothing is lost, and an engine is one process, its threads and a shared-memory ring of
160 MiB smaller: less to freeze, to dump and to restore.
"""

from typing import Any

import torch.distributed
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class InProcessExecutor(UniProcExecutor):  # type: ignore[misc]
    """`UniProcExecutor` under a name that the CPU platform does not replace.

    In a world of one, every group has the same single member: the groups that vLLM makes (13 for each way to
    split a model, with three threads, a socket and two pipes each) are all the first one.
    """

    def _init_executor(self) -> None:
        if self.parallel_config.world_size != 1:
            raise ValueError("an engine on the CPU runs in one process: leave the parallel sizes at 1")
        new_group = torch.distributed.new_group
        torch.distributed.new_group = _world
        try:
            super()._init_executor()
        finally:
            torch.distributed.new_group = new_group


def _world(*_: Any, **__: Any) -> torch.distributed.ProcessGroup | None:
    return torch.distributed.group.WORLD
