"""The ledger when its process is killed, and when the disk is full."""

import asyncio
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from metering.ledger.service import Ledger, open_ledger
from metering.ledger.sqlite_writer import SqliteWriter
from metering.types import Outcome, Usage
from tenants.errors import StorageUnavailable
from tests.metering.conftest import Entries, applied, attempt

_VICTIM = """
import asyncio, sys
from pathlib import Path
from gateway.storage.database import open_database
from metering.ledger.service import open_ledger
from metering.types import Outcome, Usage
from tests.metering.conftest import attempt

async def main(url):
    database = open_database(url)
    async with open_ledger(url, database, Path(sys.argv[2])) as ledger:
        number = 0
        while True:
            meters = [ledger.open(attempt(id=f"att_{number + one}")) for one in range(20)]
            number += 20
            for meter in meters:
                await meter.opened()
                print("opened", meter.attempt.id, flush=True)
                meter.observe(Usage(5, 0, 1))
            for meter in meters[:15]:
                await meter.settle(Outcome.COMPLETED, Usage(5, 0, 9))
                print("settled", meter.attempt.id, flush=True)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("lines", [3, 40, 400])
async def test_what_was_told_before_a_kill_is_in_the_ledger(file: Path, entries: Entries, lines: int) -> None:
    url = f"sqlite+aiosqlite:///{file}"
    root = Path(__file__).parents[3]
    victim = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _VICTIM,
        url,
        str(file.parent / "ledger"),
        stdout=asyncio.subprocess.PIPE,
        cwd=root,
    )
    assert victim.stdout is not None
    answer = [await victim.stdout.readline() for _ in range(lines)]
    victim.send_signal(signal.SIGKILL)
    answer += (await victim.stdout.read()).splitlines(keepends=True)
    await victim.wait()
    words = [line.split() for line in answer if line.endswith(b"\n")]
    opened = {word[1].decode() for word in words if word[0] == b"opened"}
    settled = {word[1].decode() for word in words if word[0] == b"settled"}
    assert opened
    async with Ledger(SqliteWriter(str(file)), file.parent / "ledger"):
        stored = entries()
    assert opened <= set(stored)
    assert {stored[item]["outcome"] for item in settled} <= {"completed"}
    assert {entry["outcome"] for entry in stored.values()} <= {"completed", "interrupted"}
    assert all(
        entry["output_tokens"] in (0, 1) for entry in stored.values() if entry["outcome"] == "interrupted"
    )
    assert {entry["output_tokens"] for entry in stored.values() if entry["outcome"] == "completed"} <= {9}


class SmallDisk(SqliteWriter):
    """A writer whose file may not grow beyond so many pages: SQLite's own 'database or disk is full'."""

    pages = 1_000_000

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute(f"PRAGMA max_page_count = {self.pages}")
        return connection


async def test_full_database_is_taken_over_by_the_journal(file: Path, entries: Entries) -> None:
    writer = SmallDisk(str(file))
    async with Ledger(writer, file.parent / "ledger") as ledger:
        streaming = [ledger.open(attempt()) for _ in range(20)]
        await applied(ledger, entries)
        writer.pages = 1
        for _ in range(500):
            await ledger.open(attempt(user_id="x" * 200)).opened()
        for meter in streaming:
            await meter.settle(Outcome.COMPLETED, Usage(3, 0, 30))
        assert not await ledger.applied()
        writer.pages = 1_000_000
        for _ in range(500):
            stored = entries()
            if all(stored[meter.attempt.id]["outcome"] == "completed" for meter in streaming):
                break
            await asyncio.sleep(0.01)
        assert {stored[meter.attempt.id]["output_tokens"] for meter in streaming} == {30}
        assert len(stored) == 520


async def test_file_that_is_gone_fails_and_is_not_made_anew(file: Path) -> None:
    url = f"sqlite+aiosqlite:///{file}"
    ledger = open_ledger(url, None, file.parent / "ledger")  # type: ignore[arg-type]
    for item in file.parent.glob("torpor.db*"):
        item.unlink()
    with pytest.raises(StorageUnavailable):
        await ledger.__aenter__()
    assert not file.exists()
