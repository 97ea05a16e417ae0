"""Zip archives, read entry by entry in bounded memory.

The format: PKWARE's APPNOTE.TXT, sections 4.3.7 (local header), 4.3.12 (central directory) and 4.3.16 (its
end). Only what a file of less than 4 GiB needs is taken. The standard library's zipfile holds a directory
in memory, as large as the archive says that it is.
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gateway.adapters.errors import InvalidAdapter, shown
from gateway.adapters.members import MAX_MEMBERS, Unpacking, refuse_kind

_PIECE_BYTES = 1024 * 1024
_MAX_DIRECTORY_BYTES = 64 * 1024
_MAX_COMMENT_BYTES = 65_535
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 0x1, 0x800
_UNIX = 3


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def is_zip(path: Path) -> bool:
    """Whether the file begins as zip archives do."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def unpack_zip(path: Path, unpacking: Unpacking) -> None:
    """Hands every file of the archive over. Raises `InvalidAdapter`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        entries = _directory(file, size)
        if any(entry.name.endswith("data.pkl") for entry in entries):
            raise InvalidAdapter(
                "The file is a PyTorch checkpoint, a pickle that can hold code and is never read. Save the "
                "adapter as safetensors: save_pretrained(..., safe_serialization=True)."
            )
        for entry in entries:
            if entry.name.endswith("/"):
                unpacking.count(entry.name)
            else:
                unpacking.take(entry.name, _content(file, entry))


def _directory(file: BinaryIO, size: int) -> list[_Entry]:
    tail_bytes = min(size, _END.size + _MAX_COMMENT_BYTES)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _damaged()
    _, disk, first_disk, here, entries, length, offset, _ = _END.unpack_from(tail, at)
    if disk or first_disk or here != entries or entries > MAX_MEMBERS or length > _MAX_DIRECTORY_BYTES:
        raise InvalidAdapter(f"The archive has more than {MAX_MEMBERS} entries, or more than one part.")
    file.seek(offset)
    raw = file.read(length)
    members: list[_Entry] = []
    for _ in range(entries):
        entry, raw = _entry(raw)
        members.append(entry)
    return members


def _entry(raw: bytes) -> tuple[_Entry, bytes]:
    """The first entry of what is left of the directory, and the rest."""
    if len(raw) < _ENTRY.size or raw[:4] != b"PK\x01\x02":
        raise _damaged()
    (
        _, made_by, _, flags, method, _, _, crc, packed, size,
        name_bytes, extra_bytes, comment_bytes, _, _, attributes, offset,
    ) = _ENTRY.unpack_from(raw)  # fmt: skip
    encoded = raw[_ENTRY.size : _ENTRY.size + name_bytes]
    if len(encoded) < name_bytes:
        raise _damaged()
    name = encoded.decode("utf-8" if flags & _UTF8 else "cp437", "replace")
    mode = attributes >> 16 if made_by >> 8 == _UNIX else 0
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refuse_kind(name, "a link or a device")
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise InvalidAdapter(f"The archive's entry {shown(name)} is encrypted, or packed in an unknown way.")
    rest = raw[_ENTRY.size + name_bytes + extra_bytes + comment_bytes :]
    return _Entry(name, method, crc, packed, size, offset), rest


def _content(file: BinaryIO, entry: _Entry) -> Iterator[bytes]:
    """What the entry unpacks to, which must be what the directory says of it."""
    file.seek(entry.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise _damaged()
    name_bytes, extra_bytes = _LOCAL.unpack(header)[-2:]
    file.seek(name_bytes + extra_bytes, 1)
    crc = size = 0
    pieces = _stored(file, entry) if entry.method == _STORED else _inflated(file, entry)
    for piece in pieces:
        size += len(piece)
        if size > entry.size:
            break
        crc = zlib.crc32(piece, crc)
        yield piece
    if size != entry.size or crc != entry.crc:
        raise InvalidAdapter(f"The archive's entry {shown(entry.name)} is not what its directory says.")


def _stored(file: BinaryIO, entry: _Entry) -> Iterator[bytes]:
    left = entry.packed
    while left:
        piece = file.read(min(left, _PIECE_BYTES))
        if not piece:
            raise _damaged()
        left -= len(piece)
        yield piece


def _inflated(file: BinaryIO, entry: _Entry) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in _stored(file, entry):
            rest = packed
            while rest and not unpacker.eof:
                yield unpacker.decompress(rest, _PIECE_BYTES)
                rest = unpacker.unconsumed_tail
        while not unpacker.eof:
            piece = unpacker.decompress(unpacker.unconsumed_tail, _PIECE_BYTES)
            if not piece:
                raise _damaged()
            yield piece
    except zlib.error:
        raise _damaged() from None


def _damaged() -> InvalidAdapter:
    return InvalidAdapter("The file is not a zip archive, or is damaged.")
