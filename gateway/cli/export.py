"""``torpor usage export``: the ledger's entries for other tools."""

import csv
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import click
from sqlalchemy.exc import SQLAlchemyError

from gateway.cli.common import Installation, config_option, run
from gateway.cli.errors import CommandError
from gateway.cli.reports import ledger_database
from metering.reports.export import EXPORTED, settled_entries
from metering.reports.parquet import ParquetWriter


@click.command()
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="The format of the file.",
)
@click.option("--from", "start", type=click.DateTime(["%Y-%m-%d"]), help="First day (UTC); today by default.")
@click.option(
    "--to", "end", type=click.DateTime(["%Y-%m-%d"]), help="Last day (UTC); that of --from by default."
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Standard output by default.")
@config_option
def export(
    kind: str, start: datetime | None, end: datetime | None, output: Path | None, config_file: Path
) -> None:
    """Every settled entry of the ledger, of all organizations, from the database itself."""
    first = start.date() if start is not None else datetime.now(UTC).date()
    last = end.date() if end is not None else first
    if last < first:
        raise CommandError("--to must not be before --from")
    installation = Installation.load(config_file)
    with _sink(output) as sink:
        count = run(lambda: _export(installation, kind, _unix(first), _unix(last + timedelta(days=1)), sink))
    click.echo(f"{count} entries", err=True)


def _unix(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


@contextmanager
def _sink(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that has its name only when it is whole."""
    if output is None:
        yield sys.stdout.buffer
        return
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    try:
        try:
            with part.open("xb") as file:
                yield file
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}") from None


async def _export(installation: Installation, kind: str, start: int, end: int, sink: BinaryIO) -> int:
    database = await ledger_database(installation)
    count = 0
    try:
        writer = _Csv(sink) if kind == "csv" else ParquetWriter(sink, EXPORTED)
        async for rows in settled_entries(database, start, end):
            writer.write(rows)
            count += len(rows)
        writer.close()
    except SQLAlchemyError as error:
        raise CommandError(f"the ledger cannot be read: {type(error).__name__}") from None
    finally:
        await database.dispose()
    return count


class _Csv:
    """Writes rows as RFC 4180 has them, with a line of heads."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._write([EXPORTED])

    def write(self, rows: Any) -> None:
        """Null is an empty field."""
        self._write(rows)

    def close(self) -> None:
        """Nothing remains to be done."""

    def _write(self, rows: Any) -> None:
        text = _Lines()
        csv.writer(text).writerows(rows)
        self._sink.write("".join(text.lines).encode())


class _Lines:
    """The file that `csv` writes into."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines.append(text)
