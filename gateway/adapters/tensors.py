"""The safetensors format, read without trusting it: the header within bounds, then values that are finite.

The format (https://huggingface.co/docs/safetensors): 8 bytes of little-endian length N, N bytes of JSON that
map names to ``dtype``, ``shape`` and ``data_offsets`` [begin, end) in the rest of the file. Nothing in it is
code.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gateway.adapters.errors import InvalidAdapter, shown

MAX_HEADER_BYTES = 4 * 1024**2
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_MAX_DIMENSION = 2**31
_CHUNK_BYTES = 4 * 1024**2
# The bytes of a word, and the bits of its exponent: all of them are set in infinities and in no number.
_WORDS: dict[str, tuple[int, int]] = {"F32": (4, 0x7F80_0000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file; ``begin`` and ``end`` are offsets in bytes from the file's own beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> list[Tensor]:
    """The tensors in the order of their data. Raises `InvalidAdapter`.

    Their data covers the file to its end, without gaps and without overlaps.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_LENGTH_BYTES)
        length = int.from_bytes(head, "little")
        if len(head) < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, MAX_HEADER_BYTES):
            raise _no_header(head, length, size)
        header = _parsed(file.read(length))
    begin = _LENGTH_BYTES + length
    tensors = [
        _tensor(name, entry, begin, size - begin) for name, entry in header.items() if name != _METADATA
    ]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_cover(tensors, begin, size)
    return tensors


def _no_header(head: bytes, length: int, size: int) -> InvalidAdapter:
    if head.startswith(_PICKLES):
        return InvalidAdapter(
            "The file is a pickle, which can hold code and is never read. Save the adapter as safetensors: "
            "save_pretrained(..., safe_serialization=True)."
        )
    return InvalidAdapter(
        f"The file is not a safetensors file: its header would have {length} bytes, and the file has {size} "
        f"(a header may have {MAX_HEADER_BYTES})."
    )


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidAdapter("The header of the safetensors file is not valid JSON.") from None
    if not isinstance(header, dict):
        raise InvalidAdapter("The header of the safetensors file is not a JSON object.")
    return header


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise InvalidAdapter(f"The header of the safetensors file names `{shown(twice)}` twice.")
    return items


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _tensor(name: str, entry: Any, begin: int, data_bytes: int) -> Tensor:
    which = f"Tensor `{shown(name)}`"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidAdapter(f"{which}: the header must give its dtype, shape and data_offsets, and no more.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _WORDS:
        raise InvalidAdapter(
            f"{which} has the dtype {shown(str(dtype), 32)}; it must be one of {', '.join(_WORDS)}."
        )
    if (
        not isinstance(shape, list)
        or not all(_is_whole(dimension, _MAX_DIMENSION) for dimension in shape)
        or len(shape) > 8
    ):
        raise InvalidAdapter(f"{which}: its shape must be a list of at most 8 whole numbers.")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(_is_whole(o, data_bytes) for o in offsets)
    ):
        raise InvalidAdapter(f"{which}: its data_offsets are not within the file.")
    needed = math.prod(shape) * _WORDS[dtype][0]
    if offsets[1] - offsets[0] != needed:
        raise InvalidAdapter(
            f"{which} has {offsets[1] - offsets[0]} bytes; {dtype} of shape {shape} takes {needed}."
        )
    return Tensor(name, dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _is_whole(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _check_cover(tensors: Sequence[Tensor], begin: int, size: int) -> None:
    at = begin
    for tensor in tensors:
        if tensor.begin != at:
            what = (
                "overlaps another"
                if tensor.begin < at
                else f"leaves {tensor.begin - at} bytes before it unused"
            )
            raise InvalidAdapter(f"Tensor `{shown(tensor.name)}` {what}.")
        at = tensor.end
    if at != size:
        raise InvalidAdapter(f"The safetensors file has {size - at} bytes after its last tensor.")


def check_values(path: Path, tensors: Sequence[Tensor]) -> bytes:
    """SHA-256 of the whole file, every value of which is finite. Takes what `read_header` returned.

    Raises `InvalidAdapter`. Reads the file once, in pieces.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(tensors[0].begin if tensors else -1))
        for tensor in tensors:
            _check_tensor(file, tensor, digest)
    return digest.digest()


def _check_tensor(file: BinaryIO, tensor: Tensor, digest: "hashlib._Hash") -> None:
    # Here and not above: an upload has the time to import it, and a start of the gateway has not.
    import numpy as np

    word_bytes, exponent = _WORDS[tensor.dtype]
    word = np.dtype(f"<u{word_bytes}")
    left = tensor.end - tensor.begin
    while left:
        piece = file.read(min(left, _CHUNK_BYTES))
        if not piece:
            raise InvalidAdapter(f"Tensor `{shown(tensor.name)}`: the file ends within it.")
        digest.update(piece)
        if ((np.frombuffer(piece, word) & exponent) == exponent).any():
            raise InvalidAdapter(
                f"Tensor `{shown(tensor.name)}` holds values that are not finite (NaN or infinity)."
            )
        left -= len(piece)
