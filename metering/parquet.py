"""Writes tables as Apache Parquet: one file, row groups, plain encoding, no compression.

Only what the ledger needs of https://github.com/apache/parquet-format: flat, optional columns of booleans,
64-bit integers, doubles and UTF-8 strings. Definition levels are in the hybrid of runs and bit-packed groups
that the format calls RLE; metadata is in Thrift's compact protocol.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from sqlalchemy import BigInteger, Boolean, Double, Integer

from metering.tables import ledger_entries

_MAGIC = b"PAR1"
_BOOLEAN, _INT64, _DOUBLE, _BYTE_ARRAY = 0, 2, 5, 6
_PLAIN, _RLE = 0, 3
_UTF8 = 0
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
_OPTIONAL = 1
_CREATED_BY = b"torpor"


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Where a column of a row group is."""

    offset: int
    size: int


class ParquetWriter:
    """Writes columns of the ledger's table; each call of `write` makes a row group."""

    def __init__(self, sink: BinaryIO, columns: Sequence[str]) -> None:
        self._sink = sink
        self._columns = [(name, _physical(name)) for name in columns]
        self._at = 0
        self._groups: list[tuple[int, list[_Chunk]]] = []
        self._put(_MAGIC)

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Rows in the order of the columns; ``None`` is null."""
        chunks = []
        for index, (_, physical) in enumerate(self._columns):
            values = [row[index] for row in rows]
            body = _levels(values) + _plain(physical, [value for value in values if value is not None])
            header = _struct(
                (1, _I32, 0),
                (2, _I32, len(body)),
                (3, _I32, len(body)),
                (
                    5,
                    _STRUCT,
                    _struct((1, _I32, len(rows)), (2, _I32, _PLAIN), (3, _I32, _RLE), (4, _I32, _RLE)),
                ),
            )
            chunks.append(_Chunk(self._at, len(header) + len(body)))
            self._put(header + body)
        self._groups.append((len(rows), chunks))

    def close(self) -> None:
        """Writes the footer. The file stays open."""
        footer = _struct(
            (1, _I32, 2),
            (2, _LIST, _list(_STRUCT, self._schema())),
            (3, _I64, sum(rows for rows, _ in self._groups)),
            (4, _LIST, _list(_STRUCT, [self._group(rows, chunks) for rows, chunks in self._groups])),
            (6, _BINARY, _CREATED_BY),
        )
        self._put(footer + struct.pack("<I", len(footer)) + _MAGIC)

    def _put(self, data: bytes) -> None:
        self._sink.write(data)
        self._at += len(data)

    def _schema(self) -> list[bytes]:
        root = _struct((4, _BINARY, b"entries"), (5, _I32, len(self._columns)))
        leaves = []
        for name, physical in self._columns:
            fields: list[tuple[int, int, Any]] = [
                (1, _I32, physical),
                (3, _I32, _OPTIONAL),
                (4, _BINARY, name.encode()),
            ]
            if physical == _BYTE_ARRAY:
                fields.append((6, _I32, _UTF8))
            leaves.append(_struct(*fields))
        return [root, *leaves]

    def _group(self, rows: int, chunks: list[_Chunk]) -> bytes:
        columns = []
        for (name, physical), chunk in zip(self._columns, chunks, strict=True):
            metadata = _struct(
                (1, _I32, physical),
                (2, _LIST, _list(_I32, [_zigzag(_PLAIN), _zigzag(_RLE)])),
                (3, _LIST, _list(_BINARY, [_binary(name.encode())])),
                (4, _I32, 0),
                (5, _I64, rows),
                (6, _I64, chunk.size),
                (7, _I64, chunk.size),
                (9, _I64, chunk.offset),
            )
            columns.append(_struct((2, _I64, chunk.offset), (3, _STRUCT, metadata)))
        total = sum(chunk.size for chunk in chunks)
        return _struct((1, _LIST, _list(_STRUCT, columns)), (2, _I64, total), (3, _I64, rows))


def _physical(name: str) -> int:
    kind = ledger_entries.c[name].type
    if isinstance(kind, Boolean):
        return _BOOLEAN
    if isinstance(kind, BigInteger | Integer):
        return _INT64
    return _DOUBLE if isinstance(kind, Double) else _BYTE_ARRAY


def _levels(values: Sequence[Any]) -> bytes:
    """Which of the values are there, in runs of one bit."""
    runs: list[tuple[bool, int]] = []
    for value in values:
        there = value is not None
        if runs and runs[-1][0] is there:
            runs[-1] = (there, runs[-1][1] + 1)
        else:
            runs.append((there, 1))
    data = b"".join(_varint(length << 1) + bytes([there]) for there, length in runs)
    return struct.pack("<I", len(data)) + data


def _plain(physical: int, values: list[Any]) -> bytes:
    if physical == _BOOLEAN:
        packed = bytearray(-(-len(values) // 8))
        for index, value in enumerate(values):
            packed[index // 8] |= bool(value) << index % 8
        return bytes(packed)
    if physical == _INT64:
        return struct.pack(f"<{len(values)}q", *values)
    if physical == _DOUBLE:
        return struct.pack(f"<{len(values)}d", *values)
    texts = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _struct(*fields: tuple[int, int, Any]) -> bytes:
    """A struct of Thrift's compact protocol, of ``(id, type, value)`` in the order of their ids."""
    data, last = b"", 0
    for number, kind, value in fields:
        data += bytes([(number - last) << 4 | kind])
        last = number
        if kind in (_I32, _I64):
            data += _zigzag(value)
        else:
            data += _binary(value) if kind == _BINARY else value
    return data + b"\0"


def _list(kind: int, items: Iterable[bytes]) -> bytes:
    data = list(items)
    size = len(data)
    head = bytes([size << 4 | kind]) if size < 15 else bytes([0xF0 | kind]) + _varint(size)
    return head + b"".join(data)


def _binary(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _zigzag(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
