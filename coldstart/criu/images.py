"""CRIU's image files, as far as Torpor rewrites them.

A file is an 8-byte magic and then entries: a little-endian u32 length and a protobuf message. Only what is
needed of protobuf's wire format is here: fields keep their order, and what is not understood stays as it is.
Sources: CRIU's ``images/*.proto`` (version 4.2) and the protobuf encoding guide.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

_MAGIC = 8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class InvalidImage(ValueError):
    """A file is not what CRIU writes."""


class ProtobufMessage:
    """A protobuf message: its fields in their order, each a number, or bytes."""

    def __init__(self, fields: Iterable[tuple[int, int, int | bytes]] = ()) -> None:
        self._fields = list(fields)

    @classmethod
    def parse(cls, data: bytes) -> "ProtobufMessage":
        """Parse the bytes of a message. Raises `InvalidImage`."""
        try:
            return cls(_fields(data))
        except (IndexError, struct.error) as error:
            raise InvalidImage("a message is cut short") from error

    def get(self, number: int, default: int = 0) -> int:
        """A numeric field."""
        for field, _, value in self._fields:
            if field == number and isinstance(value, int):
                return value
        return default

    def blob(self, number: int) -> bytes | None:
        """A field of bytes: a string or a message."""
        for field, _, value in self._fields:
            if field == number and isinstance(value, bytes):
                return value
        return None

    def blobs(self, number: int) -> list[bytes]:
        """A repeated field of bytes."""
        return [value for field, _, value in self._fields if field == number and isinstance(value, bytes)]

    def with_values(self, values: dict[int, int | bytes | None]) -> "ProtobufMessage":
        """A copy with these fields set; None takes a field out."""
        fields = [field for field in self._fields if field[0] not in values]
        for number, value in values.items():
            if value is not None:
                fields.append((number, _VARINT if isinstance(value, int) else _BYTES, value))
        return ProtobufMessage(sorted(fields, key=lambda field: field[0]))

    def with_repeated(self, number: int, values: Iterable[bytes]) -> "ProtobufMessage":
        """A copy in which the repeated field holds these."""
        fields = [field for field in self._fields if field[0] != number]
        fields += [(number, _BYTES, value) for value in values]
        return ProtobufMessage(sorted(fields, key=lambda field: field[0]))

    def encode(self) -> bytes:
        out = bytearray()
        for number, kind, value in self._fields:
            out += _encode_varint(number << 3 | kind)
            if isinstance(value, int):
                out += _encode_varint(value)
            else:
                if kind == _BYTES:
                    out += _encode_varint(len(value))
                out += value
        return bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    position = 0
    while position < len(data):
        key, position = _decode_varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _decode_varint(data, position)
            yield key >> 3, kind, value
            continue
        if kind == _BYTES:
            length, position = _decode_varint(data, position)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(kind, len(data) + 1)
        if position + length > len(data):
            raise InvalidImage("a message is cut short")
        yield key >> 3, kind, data[position : position + length]
        position += length


def _decode_varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read(path: Path) -> tuple[bytes, list[ProtobufMessage]]:
    """The magic and the entries of an image file. Raises `InvalidImage`, OSError."""
    data = path.read_bytes()
    entries, position = [], _MAGIC
    while position < len(data):
        if position + 4 > len(data):
            raise InvalidImage(f"{path.name} is cut short")
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        if position + length > len(data):
            raise InvalidImage(f"{path.name} is cut short")
        entries.append(ProtobufMessage.parse(data[position : position + length]))
        position += length
    return data[:_MAGIC], entries


def write(path: Path, magic: bytes, entries: Iterable[ProtobufMessage]) -> None:
    """Rewrite an image file."""
    out = bytearray(magic)
    for entry in entries:
        encoded = entry.encode()
        out += struct.pack("<I", len(encoded)) + encoded
    path.write_bytes(out)
