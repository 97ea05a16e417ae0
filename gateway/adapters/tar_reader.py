"""Tar archives, plain and gzipped, read entry by entry in bounded memory.

The format: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), https://pubs.opengroup.org/onlinepubs/9699919799/
utilities/pax.html. The standard library's tarfile holds a whole pax header in memory, as large as the archive
says that it is.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from gateway.adapters.errors import InvalidAdapter, shown
from gateway.adapters.members import Unpacking, refuse_kind

_BLOCK = 512
_PIECE_BYTES = 1024 * 1024
_MAX_PAX_BYTES = 64 * 1024
_REGULAR, _FOLDER, _PAX, _PAX_OF_ALL = (b"0", b"\0", b"7"), b"5", b"x", b"g"
_OTHERS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
}  # fmt: skip


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """As many bytes, or fewer at the end."""


def is_tar(path: Path) -> bool:
    """Whether the file is a tar archive that is not compressed."""
    with path.open("rb") as file:
        return file.read(_BLOCK)[257:262] == b"ustar"


def is_gzip(path: Path) -> bool:
    """Whether the file is compressed by gzip."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def unpack_tar(path: Path, unpacking: Unpacking) -> None:
    """Hands every file of the archive over. Raises `InvalidAdapter`."""
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
            _unpack(file, unpacking)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InvalidAdapter("The archive is damaged: gzip cannot unpack it.") from None


def _unpack(file: _Readable, unpacking: Unpacking) -> None:
    pax: dict[str, str] = {}
    while True:
        block = _exactly(file, _BLOCK)
        unpacking.unpacked(_BLOCK)
        if block == bytes(_BLOCK):
            return
        _check_sum(block)
        kind, size = block[156:157], _number(block[124:136])
        if kind in (_PAX, _PAX_OF_ALL):
            unpacking.count("")
            pax_records = _pax_records(_padded(file, size, unpacking))
            pax = pax_records if kind == _PAX else pax
            continue
        name = pax.pop("path", None) or _name(block)
        pax = {}
        if kind in _REGULAR:
            unpacking.take(name, _pieces(file, size))
            padding = -size % _BLOCK
            _exactly(file, padding)
        elif kind == _FOLDER and size == 0:
            unpacking.count(name)
        else:
            raise refuse_kind(name, _OTHERS.get(kind, "of an unknown kind"))


def _padded(file: _Readable, size: int, unpacking: Unpacking) -> bytes:
    if size > _MAX_PAX_BYTES:
        raise InvalidAdapter("The archive has a header of more than 64 KiB.")
    unpacking.unpacked(size)
    return _exactly(file, size + -size % _BLOCK)[:size]


def _pax_records(raw: bytes) -> dict[str, str]:
    """Read the ``length key=value`` lines that change what an entry is."""
    records: dict[str, str] = {}
    while raw:
        length, space, _ = raw.partition(b" ")
        if not space or not length.isdigit() or len(length) > 5 or not len(length) < int(length) <= len(raw):
            raise InvalidAdapter("The archive has a header that cannot be read.")
        record = raw[len(length) + 1 : int(length)]
        key, _, value = record.removesuffix(b"\n").partition(b"=")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise InvalidAdapter(
                f"The archive has a header {shown(key.decode('latin-1'), 32)}, not taken here."
            )
        if key == b"path":
            records["path"] = value.decode("utf-8", "replace")
        raw = raw[int(length) :]
    return records


def _pieces(file: _Readable, size: int) -> Iterator[bytes]:
    while size:
        piece = _exactly(file, min(size, _PIECE_BYTES))
        size -= len(piece)
        yield piece


def _exactly(file: _Readable, size: int) -> bytes:
    data = file.read(size) if size else b""
    if len(data) < size:
        raise InvalidAdapter("The archive is cut short.")
    return data


def _name(block: bytes) -> str:
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    # GNU's own format has times where ustar has the prefix.
    whole = prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name
    return whole.decode("utf-8", "replace")


def _number(field: bytes) -> int:
    text = field.strip(b" \0")
    try:
        return int(text or b"0", 8)
    except ValueError:
        raise InvalidAdapter("The archive has a header that cannot be read.") from None


def _check_sum(block: bytes) -> None:
    # The field itself counts as spaces.
    recorded = block[148:156].strip(b" \0")
    actual = b"%o" % (sum(block) - sum(block[148:156]) + 8 * ord(" "))
    if recorded.lstrip(b"0") != actual:
        raise InvalidAdapter("The file is not a tar archive, or is damaged: a header's checksum is wrong.")
