"""What a model folder says about itself, read without loading it: ``config.json`` and safetensors headers.

A safetensors file begins with the length of its header (u64, little-endian) and the header itself, a JSON
object from each tensor's name to its ``dtype``, ``shape`` and ``data_offsets``, relative to the header's end
(https://huggingface.co/docs/safetensors). Reading the headers of a model of several gigabytes takes
milliseconds.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.errors import InvalidModel

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
"""The files that hold a checkpoint's weights, as transformers and vLLM look for them."""

DTYPE_BYTES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""The data types that an engine can compute in on the CPU, and their bytes."""

_SAFETENSORS = "*.safetensors"
_INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000  # the format's own limit
_FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
# vLLM computes these projections of one layer as one matrix.
_MERGED = re.compile(r"\b(?:(q|k|v)|(gate|up))_proj\.weight$")
_NESTED = ("text_config", "llm_config", "language_config")
# What PyTorch files and GGUF files hold beside weights.
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pt")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a checkpoint.

    ``floats``: how many numbers are stored as floats, and become the engine's data type. ``fixed_bytes``: of
    what keeps its form (quantized tensors). ``exact`` is False if only the files' sizes are known.
    ``matrices``: the shapes (rows, columns) of the float matrices as they are computed, each with its number.
    """

    floats: int = 0
    fixed_bytes: int = 0
    exact: bool = True
    matrices: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def size(self, dtype: str) -> int:
        """Bytes in an engine that computes in ``dtype``."""
        return self.floats * DTYPE_BYTES.get(dtype, 2) + self.fixed_bytes


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What was read of a model's folder."""

    configuration: Mapping[str, Any]
    weights: Weights

    @property
    def text(self) -> Mapping[str, Any]:
        """The configuration of the language model."""
        return text_configuration(self.configuration)

    @property
    def quantization(self) -> str | None:
        """The method by which the checkpoint is quantized."""
        return quantization(self.configuration)


def read_model(folder: Path, model_id: str) -> ModelFiles:
    """Read a model's configuration and weights. Raises `InvalidModel` for a damaged or incomplete file."""
    configuration = read_configuration(folder, model_id)
    return ModelFiles(configuration, read_weights(folder, model_id, configuration))


def read_configuration(folder: Path, model_id: str) -> dict[str, Any]:
    """The content of ``config.json``. Raises `InvalidModel`."""
    path = folder / "config.json"
    try:
        configuration = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidModel(f"model {model_id}: {path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModel(f"model {model_id}: {path} cannot be read: {error}") from error
    if not isinstance(configuration, dict):
        raise InvalidModel(f"model {model_id}: {path} is not a JSON object")
    return configuration


def text_configuration(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model, for a model that has others beside it."""
    for name in _NESTED:
        if isinstance(nested := configuration.get(name), dict) and nested:
            return nested
    return configuration


def quantization(configuration: Mapping[str, Any]) -> str | None:
    """The method by which the checkpoint is quantized (``"unknown"``: it does not say), None if it is not."""
    for part in (configuration, text_configuration(configuration)):
        for key in ("quantization_config", "compression_config"):
            if isinstance(method := part.get(key), dict):
                return str(method.get("quant_method") or "unknown")
    return None


def weight_files(folder: Path) -> list[Path]:
    """The files that vLLM loads: safetensors files if there are any, those of the index if there is one."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            names = set()
        if files := sorted(folder / name for name in names if (folder / name).is_file()):
            return files
    for pattern in WEIGHTS:
        # Mistral's own form of the same weights is not loaded beside the usual one.
        files = sorted(path for path in folder.glob(pattern) if path.name not in _NO_WEIGHTS)
        usual = [path for path in files if not path.name.startswith("consolidated")]
        if files:
            return usual or files
    return []


def read_weights(folder: Path, model_id: str, configuration: Mapping[str, Any]) -> Weights:
    """Read the sizes of a model's weights. Raises `InvalidModel` for a damaged or incomplete file."""
    files = weight_files(folder)
    if files and all(path.match(_SAFETENSORS) for path in files):
        tied = bool(configuration.get("tie_word_embeddings", False))
        return _of_tensors(files, model_id, tied=tied)
    size = sum(path.stat().st_size for path in files)
    text = text_configuration(configuration)
    stored = str(text.get("dtype") or text.get("torch_dtype") or "float32").removeprefix("torch.")
    if quantization(configuration) or any(path.match("*.gguf") for path in files):
        return Weights(fixed_bytes=size, exact=False)
    return Weights(floats=size // DTYPE_BYTES.get(stored, 4), exact=False)


def _of_tensors(files: list[Path], model_id: str, *, tied: bool) -> Weights:
    floats = fixed_bytes = 0
    merged: dict[tuple[str, int], int] = {}  # rows, by name and columns
    for name, tensor in (item for file in files for item in _header(file, model_id).items()):
        if name == "__metadata__" or (tied and name.endswith("lm_head.weight")):
            continue
        shape = tensor["shape"]
        if tensor["dtype"] in _FLOATS:
            floats += math.prod(shape)
            if len(shape) == 2:
                key = (_MERGED.sub(lambda match: "qkv" if match[1] else "gate_up", name), shape[1])
                merged[key] = merged.get(key, 0) + shape[0]
        else:
            first, last = tensor["data_offsets"]
            fixed_bytes += last - first
    matrices = Counter((rows, columns) for (_, columns), rows in merged.items())
    return Weights(floats, fixed_bytes, matrices=matrices)


def _header(path: Path, model_id: str) -> dict[str, Any]:
    """The header of a safetensors file whose data is as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(_LARGEST_HEADER, size - 8):
            raise InvalidModel(
                f"model {model_id}: {path} is damaged: its header cannot be {length} bytes long "
                f"in a file of {size}; copy the file again"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        ends = list(_ends(header))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModel(
            f"model {model_id}: {path} is damaged: its header is not valid; copy the file again"
        ) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise InvalidModel(
            f"model {model_id}: {path} has {size} bytes, and its header describes {expected}: "
            "it is cut short or damaged; copy the file again"
        )
    return dict(header)


def _ends(header: Any) -> Iterator[int]:
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        first, last = tensor["data_offsets"]
        if not (isinstance(tensor["dtype"], str) and all(isinstance(n, int) for n in tensor["shape"])):
            raise TypeError(name)
        if not 0 <= first <= last:
            raise ValueError(name)
        yield last
