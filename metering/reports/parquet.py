"""The ledger's entries as Apache Parquet, for analysis with other tools."""

from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet
from sqlalchemy import BigInteger, Boolean, Double, Integer

from metering.tables import ledger_entries


class ParquetWriter:
    """Writes columns of the ledger's table; each call of `write` makes a row group.

    Columns are nullable booleans, 64-bit integers, doubles and UTF-8 strings.
    """

    def __init__(self, sink: BinaryIO, columns: Sequence[str]) -> None:
        self._schema = pa.schema([(name, _type(name)) for name in columns])
        self._writer = parquet.ParquetWriter(sink, self._schema, compression="zstd")

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Rows in the order of the columns; ``None`` is null."""
        arrays = [
            pa.array([row[index] for row in rows], type=field.type)
            for index, field in enumerate(self._schema)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the footer. The file stays open."""
        self._writer.close()


def _type(name: str) -> Any:
    kind = ledger_entries.c[name].type
    if isinstance(kind, Boolean):
        return pa.bool_()
    if isinstance(kind, BigInteger | Integer):
        return pa.int64()
    return pa.float64() if isinstance(kind, Double) else pa.string()
