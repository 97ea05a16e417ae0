"""The check of the rollups, and exports of entries."""

import io
import random
import struct
from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncEngine

from metering.entries import Settlement, Write
from metering.export import EXPORTED, settled_entries
from metering.parquet import ParquetWriter
from metering.sql_writer import SqlWriter
from metering.tables import usage_days, usage_hours
from metering.types import Outcome, Usage
from metering.verify import differences
from tests.metering.conftest import attempt

DAY = 86_400
MONDAY = 1_704_067_200


async def _filled(database: AsyncEngine, count: int = 300) -> list[Write]:
    chance = random.Random(2)
    writes = [
        Write(
            attempt(
                started_at=MONDAY + chance.randrange(0, 20 * DAY),
                organization_id=chance.choice(["org-1", "org-2"]),
                user_id=chance.choice([None, "alice"]),
            ),
            Usage(chance.randrange(0, 9), 0, chance.randrange(0, 9)),
            chance.choice(
                [None, Settlement(Outcome.COMPLETED, 1, None, 200), Settlement(Outcome.FAILED, 1, None, 500)]
            ),
        )
        for _ in range(count)
    ]
    await SqlWriter(database).store([write.row() for write in writes])
    return writes


async def test_rollups_are_what_the_entries_say(database: AsyncEngine) -> None:
    assert [one async for one in differences(database)] == []
    writes = await _filled(database)
    again = [write.row() for write in writes]
    await SqlWriter(database).store(again)
    assert [one async for one in differences(database)] == []


async def test_every_difference_is_found_and_told(database: AsyncEngine) -> None:
    await _filled(database)
    async with database.begin() as connection:
        day = await connection.scalar(usage_days.select().with_only_columns(usage_days.c.day).limit(1))
        await connection.execute(
            update(usage_days)
            .where(usage_days.c.day == day, usage_days.c.organization_id == "org-1")
            .values(output_tokens=usage_days.c.output_tokens + 5)
        )
        gone = (
            await connection.execute(
                usage_hours.select().where(usage_hours.c.organization_id == "org-2").limit(1)
            )
        ).one()
        await connection.execute(
            delete(usage_hours).where(
                usage_hours.c.organization_id == "org-2",
                usage_hours.c.hour == gone.hour,
                usage_hours.c.user_id == gone.user_id,
            )
        )
    found = [one async for one in differences(database)]
    assert [(one.rollup, one.missing) for one in found] == [
        ("usage_days", {"output_tokens": -5}),
        (
            "usage_hours",
            {
                name: value
                for name, value in (
                    ("requests", gone.requests),
                    ("input_tokens", gone.input_tokens),
                    ("output_tokens", gone.output_tokens),
                )
                if value
            },
        ),
    ]


async def test_export_has_every_settled_entry_of_the_span_once(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metering.export._CHUNK", 7)
    writes = await _filled(database)
    start, end = MONDAY + 2 * DAY, MONDAY + 9 * DAY
    exported = [row async for rows in settled_entries(database, start, end) for row in rows]
    wanted = {
        write.attempt.id
        for write in writes
        if write.settlement is not None and start <= write.attempt.started_at < end
    }
    assert len(exported) == len(wanted)
    assert {row[0] for row in exported} == wanted
    assert "owner" not in EXPORTED


async def test_parquet_can_be_read_back(database: AsyncEngine) -> None:
    await _filled(database)
    sink = io.BytesIO()
    rows: list[tuple[Any, ...]] = []
    writer = ParquetWriter(sink, EXPORTED)
    async for chunk in settled_entries(database, MONDAY, MONDAY + 30 * DAY):
        writer.write(chunk)
        rows += chunk
    writer.close()
    assert _read_parquet(sink.getvalue()) == [dict(zip(EXPORTED, row, strict=True)) for row in rows]


class _Thrift:
    """Reads the compact protocol: structs as dictionaries by field id."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def value(self, kind: int) -> Any:
        if kind in (5, 6):
            number = self.varint()
            return number >> 1 ^ -(number & 1)
        if kind == 8:
            size = self.varint()
            self.at += size
            return self.data[self.at - size : self.at]
        if kind == 9:
            head = self.varint() if self.data[self.at] < 0x80 else self._long_head()
            size = head >> 4 if head >> 4 != 15 else self.varint()
            return [self.value(head & 15) for _ in range(size)]
        assert kind == 12
        return self.struct()

    def _long_head(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self.data[self.at]:
            self.at += 1
            number += head >> 4
            fields[number] = self.value(head & 15)
        self.at += 1
        return fields


def _read_parquet(data: bytes) -> list[dict[str, Any]]:
    assert data[:4] == data[-4:] == b"PAR1"
    (length,) = struct.unpack("<I", data[-8:-4])
    footer = _Thrift(data, len(data) - 8 - length).struct()
    columns: dict[str, list[Any]] = {leaf[4].decode(): [] for leaf in footer[2][1:]}
    for group in footer[4]:
        for chunk in group[1]:
            meta = chunk[3]
            reader = _Thrift(data, meta[9])
            page = reader.struct()
            columns[meta[3][0].decode()] += _values(data, reader.at, meta[1], page[5][1])
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert footer[3] == len(rows)
    return rows


def _values(data: bytes, at: int, physical: int, count: int) -> list[Any]:
    (size,) = struct.unpack_from("<I", data, at)
    levels, end = _Thrift(data, at + 4), at + 4 + size
    there: list[bool] = []
    while levels.at < end:
        run = levels.varint()
        assert run & 1 == 0
        there += [bool(data[levels.at])] * (run >> 1)
        levels.at += 1
    assert len(there) == count
    values, at, present = [], end, 0
    for is_there in there:
        value: Any = None
        if is_there and physical == 0:
            value = bool(data[at + present // 8] >> present % 8 & 1)
        elif is_there and physical in (2, 5):
            (value,) = struct.unpack_from("<q" if physical == 2 else "<d", data, at + 8 * present)
        elif is_there:
            (size,) = struct.unpack_from("<I", data, at)
            value = data[at + 4 : at + 4 + size].decode()
            at += 4 + size
        present += is_there
        values.append(value)
    return values
