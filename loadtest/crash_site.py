"""The gateway and the engine that `loadtest.crash_metering` kills, in processes of their own."""

import os
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

_MOST = 100_000
_START_S = 60.0


@dataclass(slots=True)
class Site:
    """The gateway, the engine, and where they live."""

    folder: Path
    gateway_port: int
    engine_port: int
    gateway: "subprocess.Popen[bytes] | None" = None
    engine: "subprocess.Popen[bytes] | None" = None
    key: str = ""
    next_number: int = 0

    @property
    def counts_file(self) -> Path:
        """Tokens that the engine has generated, by the number of the stream."""
        return self.folder / "counts"

    @property
    def database_file(self) -> Path:
        """The ledger's."""
        return self.folder / ".torpor/torpor.db"

    def prepare(self) -> None:
        """Write the configuration and make the keys."""
        self.counts_file.write_bytes(b"\0" * 4 * _MOST)
        (self.folder / "torpor.toml").write_text(
            f"[server]\nport = {self.gateway_port}\n[metrics]\nenabled = false\n"
            "[engines]\nsnapshots = false\n"
            f'[[models]]\nid = "standin"\nurl = "http://127.0.0.1:{self.engine_port}/v1"\n'
            "max_running = 512\nmax_concurrent = 512\nmax_queued = 1024\n"
            '[[prices]]\nmodel = "standin"\ninput = "1"\noutput = "2"\n'
        )
        self._torpor("setup")
        lines = (self.folder / ".torpor/credentials.env").read_text().splitlines()
        self.key = dict(line.removeprefix("export ").split("=", 1) for line in lines)["TORPOR_API_KEY"]

    def start_engine(self) -> None:
        """And waits until it listens."""
        arguments = ["--tcp", str(self.engine_port), "--counts", str(self.counts_file), "--continuous-usage"]
        command = [sys.executable, "-m", "loadtest.standin", *arguments]
        self.engine = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _wait_for(f"http://127.0.0.1:{self.engine_port}/v1/models", self.engine)

    def start_gateway(self) -> None:
        """And waits until it is ready."""
        with (self.folder / "gateway.log").open("ab") as log:
            self.gateway = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "serve"],
                cwd=self.folder,
                env=self._environment(),
                stdout=log,
                stderr=log,
            )
        _wait_for(f"http://127.0.0.1:{self.gateway_port}/health/ready", self.gateway)

    def verified(self) -> bool:
        """Whether `torpor usage verify` finds the rollups to be what the entries say."""
        return self._torpor("usage", "verify", check=False) == 0

    def generated(self, number: int) -> int:
        """Tokens that the engine has generated for a stream."""
        with self.counts_file.open("rb") as file:
            file.seek(4 * number)
            count: int = struct.unpack("<I", file.read(4))[0]
            return count

    def entries(self) -> dict[str, list[tuple[str | None, int, int]]]:
        """Outcome, input and output tokens of all entries, by request id."""
        entries: dict[str, list[tuple[str | None, int, int]]] = {}
        with closing(sqlite3.connect(f"file:{self.database_file}?mode=ro", uri=True)) as database:
            query = "SELECT request_id, outcome, input_tokens, output_tokens FROM ledger_entries"
            for request_id, *entry in database.execute(query):
                entries.setdefault(request_id, []).append((entry[0], entry[1], entry[2]))
        return entries

    def end(self) -> None:
        """End both."""
        for process in (self.gateway, self.engine):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(60)

    def _torpor(self, *arguments: str, check: bool = True) -> int:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.DEVNULL,
            timeout=300,
            check=check,
        )
        return done.returncode

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TORPOR_")}
        return {**kept, "PYTHONPATH": str(Path(__file__).parents[1])}


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).is_success:
                return
        time.sleep(0.05)
    raise TimeoutError(f"no server answers at {url}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
