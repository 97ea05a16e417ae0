"""An extension of vLLM's worker that has been taken over: `loadtest.isolation` puts it into an engine."""

from engines.vllm_process.worker import WorkerExtension
from engines.wire import ENGINE_DIR
from loadtest.isolation_watch import watch

watch(str(ENGINE_DIR))


class AttackedWorkerExtension(WorkerExtension):
    """As the engine's own; its module waits for orders."""
