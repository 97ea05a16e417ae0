"""The gateway and the engine that `loadtest.crash_metering` kills, in processes of their own."""

import sqlite3
import struct
from contextlib import closing, suppress
from pathlib import Path

from loadtest.gateway import Gateway
from loadtest.processes import Child, NotReady, free_port, python

_MOST = 100_000
_START_S = 60.0


class Site:
    """The gateway, the engine, and the folder with their files. Raises `NotReady`."""

    def __init__(self, folder: Path) -> None:
        self._engine_port = free_port()
        self.counts_file = folder / "counts"
        self.counts_file.write_bytes(b"\0" * 4 * _MOST)
        self.gateway = Gateway(
            folder,
            "[server]\nport = {port}\n[metrics]\nenabled = false\n"
            "[engines]\nsnapshots = false\n"
            f'[[models]]\nid = "standin"\nurl = "http://127.0.0.1:{self._engine_port}/v1"\n'
            "max_running = 512\nmax_concurrent = 512\nmax_queued = 1024\n"
            '[[prices]]\nmodel = "standin"\ninput = "1"\noutput = "2"\n',
        )
        self.next_number = 0
        self._engine: Child | None = None

    @property
    def engine(self) -> Child:
        """The process of the engine; it was started last and may have ended."""
        assert self._engine is not None, "the engine was not started"
        return self._engine

    def start_engine(self) -> None:
        """Start the engine, and wait until it listens."""
        arguments = ["--tcp", str(self._engine_port), "--counts", str(self.counts_file), "--continuous-usage"]
        command = python("-m", "loadtest.standin", *arguments)
        self._engine = Child("the stand-in engine", command, log=self.counts_file.with_name("engine.log"))
        self._engine.wait_for(f"http://127.0.0.1:{self._engine_port}/v1/models", _START_S)

    def verified(self) -> bool:
        """Whether `torpor usage verify` confirms that the rollups agree with the entries."""
        with suppress(NotReady):
            self.gateway.torpor("usage", "verify")
            return True
        return False

    def generated(self, number: int) -> int:
        """Tokens that the engine has generated for a stream."""
        with self.counts_file.open("rb") as file:
            file.seek(4 * number)
            count: int = struct.unpack("<I", file.read(4))[0]
            return count

    def entries(self) -> dict[str, list[tuple[str | None, int, int]]]:
        """Outcome, input and output tokens of all entries, by request id."""
        entries: dict[str, list[tuple[str | None, int, int]]] = {}
        with closing(sqlite3.connect(f"file:{self.gateway.database}?mode=ro", uri=True)) as database:
            query = "SELECT request_id, outcome, input_tokens, output_tokens FROM ledger_entries"
            for request_id, *entry in database.execute(query):
                entries.setdefault(request_id, []).append((entry[0], entry[1], entry[2]))
        return entries

    def end(self) -> None:
        """End both."""
        self.gateway.end()
        if self._engine is not None:
            self._engine.end()
