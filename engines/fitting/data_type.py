"""Which data type a model's engine computes in on this machine: set, or chosen by a short measurement.

Processors without AVX-512 BF16 or AMX emulate bfloat16, and are then several times slower than in float32.
The measurement (`engines.fitting.linear_probe`) runs once for a processor, its vector extensions, the version
of torch, the number of threads and the shapes of a model's matrices; the answer is kept in a file.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from math import exp, log
from pathlib import Path
from typing import Any

from coldstart.snapshots.manifest import machine
from engines.checkpoint import ModelFiles
from engines.engine_arguments import option
from engines.lifecycle import command
from engines.spec import ModelSpec, Task

CLEARLY_FASTER = 1.2
"""float32 is chosen if it is faster by this factor: a smaller difference may be noise."""

_DECODE = (1, 4, 16)
_PREFILL = (256,)
_TIMEOUT_S = 120.0
_FORMAT = 1
_MOST_SHAPES = 6
# Other names under which vLLM knows the types.
_ALIASES: Mapping[str, str] = {"half": "float16", "float": "float32"}
_OF_ENVIRONMENT = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
_logger = logging.getLogger("torpor.engine")


@dataclass(frozen=True, slots=True)
class DataType:
    """A data type, why it was taken, and how many times as fast float32 was measured to be as bfloat16.

    ``prefill_s``: seconds that the linear layers take for one token of a prompt, by data type; empty if not
    measured.
    """

    name: str
    reason: str
    float32_speedup: float | None = None
    prefill_s: Mapping[str, float] = field(default_factory=dict)


class DataTypes:
    """Chooses data types, and keeps in ``file`` what was measured. ``file`` None: nothing is kept."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def of(self, spec: ModelSpec, files: ModelFiles) -> DataType:
        """The data type of the model's engine. Takes some seconds if the machine has to be measured."""
        if (chosen := set_data_type(spec, files)) is not None:
            return chosen
        request = _request(files)
        if not request["layers"]:
            return DataType("bfloat16", "the shapes of the model's matrices are unknown")
        key = json.dumps({"format": _FORMAT, **_processor(), **request}, sort_keys=True)
        kept = self._read()
        if not isinstance(seconds := kept.get(key), dict):
            try:
                seconds = _measure(request)
            except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                _logger.warning("%s: the data types could not be compared: %s", spec.id, error)
                return DataType("bfloat16", "the measurement failed")
            self._write(kept | {key: seconds})
        prefill_s = {name: values[-1] / _PREFILL[-1] for name, values in seconds.items()}
        return replace(judge(seconds), prefill_s=prefill_s)

    def _read(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write(self, content: Mapping[str, Any]) -> None:
        """Replace the file; without it the next start measures again."""
        if self._file is None or not self._file.parent.is_dir():
            return
        with suppress(OSError):
            descriptor, name = tempfile.mkstemp(dir=self._file.parent, prefix=f".{self._file.name}.")
            with os.fdopen(descriptor, "w") as out:
                json.dump(content, out)
            os.replace(name, self._file)


def set_data_type(spec: ModelSpec, files: ModelFiles) -> DataType | None:
    """The data type that needs no measurement; None if only that can tell."""
    if (given := option(spec.engine_args, "--dtype")) and given != "auto":
        return DataType(_ALIASES.get(given, given), "set in engine_args")
    if spec.dtype != "auto":
        return DataType(spec.dtype, "set in the configuration")
    if spec.task is Task.EMBED:
        return DataType("float32", "vectors are compared by their last digits")
    if files.quantization is not None:
        return DataType("bfloat16", "the checkpoint is quantized")
    return None


def judge(seconds: Mapping[str, list[float]]) -> DataType:
    """By the geometric mean over the batch sizes."""
    ratios = [log(a / b) for a, b in zip(seconds["bfloat16"], seconds["float32"], strict=True)]
    speedup = exp(sum(ratios) / len(ratios))
    name = "float32" if speedup > CLEARLY_FASTER else "bfloat16"
    faster = f"float32 is {speedup:.1f} times as fast as" if speedup >= 1 else "float32 is slower than"
    return DataType(name, f"measured: {faster} bfloat16 on this processor", speedup)


def _request(files: ModelFiles) -> dict[str, Any]:
    """The model's matrices, the largest first; the head, which the embeddings may be, counts apart."""
    vocabulary = files.text.get("vocab_size")
    matrices = files.weights.matrices.items()
    layers = [[*shape, count] for shape, count in matrices if shape[0] != vocabulary and min(shape) > 1]
    layers.sort(key=lambda layer: layer[0] * layer[1] * layer[2], reverse=True)
    heads = [list(shape) for shape, _ in matrices if shape[0] == vocabulary]
    return {
        "layers": layers[:_MOST_SHAPES],
        "head": heads[0] if heads else None,
        "decode": _DECODE,
        "prefill": _PREFILL,
    }


def _processor() -> dict[str, str]:
    """What the measurement depends on beside the shapes."""
    facts = machine()
    environment = command.environment(Path("/"), Path("/"))
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    processor = {name: value for name, value in facts.items() if name.startswith("cpu ")}
    return processor | {"torch": torch} | {n: environment.get(n, "") for n in _OF_ENVIRONMENT}


def _measure(request: Mapping[str, Any]) -> dict[str, list[float]]:
    """In a process of its own, with an engine's environment. Raises what `subprocess.run` and JSON raise."""
    with tempfile.TemporaryDirectory(prefix="torpor-probe-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "engines.fitting.linear_probe"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
            env=command.environment(Path(folder), Path(folder)),
        )
    answer = json.loads(done.stdout)
    seconds: dict[str, list[float]] = answer["seconds"]
    if any(len(seconds[name]) != len(_DECODE + _PREFILL) for name in ("bfloat16", "float32")):
        raise ValueError("the measurement's answer has another form")
    if any(value <= 0 for values in seconds.values() for value in values):
        raise ValueError("the measurement took no time")
    return seconds
