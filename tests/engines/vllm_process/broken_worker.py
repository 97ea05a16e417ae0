"""A worker that spoils adapters when a file in the engine's folder says so. Imported in the engine alone."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.vllm_process.worker import WorkerExtension

_ORDERS = "sabotage"


class Saboteur(WorkerExtension):
    """Instead of `WorkerExtension` (``--worker-extension-cls``): at work from the first restore on.

    Each adapter that is put into a slot takes one order off the file: ``keep`` it, ``drop`` its weights, or
    ``swap`` them with those of the slot that was filled before.
    """

    def torpor_wake(self) -> int:
        claimed = super().torpor_wake()
        manager = self.model_runner.lora_manager._adapter_manager
        manager.activate_adapter = self._spoiling(manager, manager.activate_adapter)
        return claimed

    def _spoiling(self, manager: Any, activate: Callable[[int], bool]) -> Callable[[int], bool]:
        def activated(lora_id: int) -> bool:
            new: bool = activate(lora_id)
            order = _next_order() if new else "keep"
            slot = manager.lora_index_to_id.index(lora_id)
            others = [at for at, held in enumerate(manager.lora_index_to_id) if held and at != slot]
            for module in manager.modules.values():
                if order == "drop":
                    module.reset_lora(slot)
                if order == "swap":
                    for stack in (*_stacks(module.lora_a_stacked), *_stacks(module.lora_b_stacked)):
                        stack[[slot, others[0]]] = stack[[others[0], slot]]
            return new

        return activated


def _stacks(stacked: Any) -> tuple[Any, ...]:
    return stacked if isinstance(stacked, tuple) else (stacked,)


def _next_order() -> str:
    file = Path(os.environ["HOME"]) / _ORDERS
    orders = json.loads(file.read_text()) if file.exists() else []
    if not orders:
        return "keep"
    file.write_text(json.dumps(orders[1:]))
    return str(orders[0])
