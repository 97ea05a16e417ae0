"""Times linear layers in bfloat16 and in float32, with the kernels that an engine would use.

``python -m engines.fitting.linear_probe`` reads ``{"layers": [[rows, columns, count], ...], "head": [rows,
columns] or null, "decode": [batch sizes], "prefill": [batch sizes]}`` from standard input, and writes
``{"kernels": ..., "seconds": {dtype: [for each batch size]}}`` to standard output. The head works on the last
token of each sequence alone, so it counts for decoding only. Of vLLM only the library of kernels is loaded:
importing all of vLLM takes ten times as long as the measurement.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Decoding reads all weights, so its matrices should not fit into the caches. In a prefill the time grows with
# the matrix, and an emulated data type takes seconds for a large one: it is measured on fewer rows.
_MOST_DECODE_ELEMENTS = 32 << 20
_MOST_PREFILL_ELEMENTS = 2 << 20
# The operators of vLLM's library, whose name begins like a private one's.
_KERNELS = "_C"
_SHARE_S = 0.03
_MOST_ROUNDS = 30

Linear = Callable[[torch.Tensor], torch.Tensor]
Shape = tuple[int, int, int]


def load_kernels() -> bool:
    """Load the library that vLLM loads on this processor (vllm/platforms/cpu.py, `import_kernels`)."""
    module = find_spec("vllm")
    if module is None or not module.submodule_search_locations:
        return False
    name = "_C_AVX2"
    if torch.cpu._is_avx512_supported():  # noqa: SLF001 - as vLLM asks
        name = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"  # noqa: SLF001
    try:
        torch.ops.load_library(str(Path(module.submodule_search_locations[0]) / f"{name}.abi3.so"))
    except OSError:
        return False
    return hasattr(getattr(torch.ops, _KERNELS), "create_onednn_mm_handler")


def _linear(weight: torch.Tensor, *, kernels: bool) -> Linear:
    """As `dispatch_cpu_unquantized_gemm` chooses (vllm/model_executor/layers/utils.py)."""
    try:
        pointer = getattr(torch.ops, _KERNELS).create_onednn_mm_handler(weight.t(), 32) if kernels else None
    except RuntimeError:  # oneDNN has no such multiplication for this processor
        pointer = None
    if pointer is None:
        return lambda batch: torch.nn.functional.linear(batch, weight)
    handler = torch.tensor(pointer, dtype=torch.int64)

    def run(batch: torch.Tensor) -> torch.Tensor:
        output = torch.empty((batch.shape[0], weight.shape[0]), dtype=batch.dtype)
        getattr(torch.ops, _KERNELS).onednn_mm(output, batch, None, handler)
        return output

    return run


def _best_s(run: Linear, batch: torch.Tensor) -> float:
    """Seconds of the fastest of some rounds; what is done once for a shape is not counted, if it is quick."""
    best, began = float("inf"), time.perf_counter()
    for number in range(_MOST_ROUNDS):
        start = time.perf_counter()
        run(batch)
        end = time.perf_counter()
        if number or end - start > _SHARE_S:
            best = min(best, end - start)
        if (number and end - began > _SHARE_S) or end - start > 4 * _SHARE_S:
            break
    return best


def _layer_seconds(
    shape: tuple[int, int], batches: Sequence[int], most_elements: int, *, kernels: bool
) -> dict[str, list[float]]:
    """By data type, the seconds that a layer takes for each batch."""
    rows, columns = shape
    measured = max(16, min(rows, most_elements // columns))
    seconds = {}
    for name, dtype in _DTYPES.items():
        run = _linear(torch.full((measured, columns), 0.01, dtype=dtype), kernels=kernels)
        batch_inputs = (torch.full((size, columns), 0.5, dtype=dtype) for size in batches)
        seconds[name] = [_best_s(run, batch) * rows / measured for batch in batch_inputs]
    return seconds


def measure(
    layers: Sequence[Shape],
    head: tuple[int, int] | None,
    decode: Sequence[int],
    prefill: Sequence[int],
    *,
    kernels: bool,
) -> Mapping[str, list[float]]:
    """By data type, the seconds that all layers take for each of the ``decode`` and ``prefill`` batches."""
    totals = {name: [0.0] * (len(decode) + len(prefill)) for name in _DTYPES}

    def add(shape: tuple[int, int], batches: Sequence[int], first: int, most: int, count: int) -> None:
        for name, seconds in _layer_seconds(shape, batches, most, kernels=kernels).items():
            for index, value in enumerate(seconds, first):
                totals[name][index] += count * value

    for rows, columns, count in layers:
        add((rows, columns), decode, 0, _MOST_DECODE_ELEMENTS, count)
        add((rows, columns), prefill, len(decode), _MOST_PREFILL_ELEMENTS, count)
    if head is not None:
        add(head, decode, 0, _MOST_DECODE_ELEMENTS, 1)
    return totals


def main() -> None:
    """Read the request, measure, and write the answer."""
    request = json.load(sys.stdin)
    torch.set_grad_enabled(False)
    kernels = load_kernels()
    layers = [(rows, columns, count) for rows, columns, count in request["layers"]]
    head = tuple(request["head"]) if request["head"] else None
    seconds = measure(layers, head, request["decode"], request["prefill"], kernels=kernels)
    json.dump({"kernels": "vllm" if kernels else "torch", "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main()
