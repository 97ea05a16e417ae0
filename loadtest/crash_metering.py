"""Kills the gateway, the engine and the clients, takes the database and the disk away, and checks the ledger.

    python -m loadtest crash-metering --help

A real gateway in a process of its own, in front of a stand-in engine that knows what it has generated for
each request (`loadtest.standin`), and streams that know what they have received and when. What the
ledger says afterwards, read from its file, is held against both::

    missing   answers that came to their [DONE] without a completed entry of the right tokens, and streams of
              which anything was received without an entry
    twice     requests with more than one entry, or counted differently in a rollup than in the entries
    too many  entries with more tokens than the engine generated
    too few   entries with fewer tokens than the client had received 250 ms before its stream broke off
"""

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from loadtest.crash_site import Site
from loadtest.sections import circumstances, command, section, write_section
from loadtest.wire import PROMPT_TOKENS

GRACE_S = 0.25
PACE_S = 0.04
AWAY_S = 10.0
DISK_MIB = 96
_TABLE = (
    "| what happens | rounds | streams | completed | broken off "
    "| missing | twice | too many | too few | refused |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
ABOUT = """A real gateway in front of a stand-in engine that counts what it generates; at a random moment
something is killed, or away, and started again. *missing*: complete answers, or streams of which anything was
received, without their entry. *twice*: requests counted more than once, in entries or rollups. *too many*:
entries beyond what the engine generated. *too few*: entries below what the client had received 250 ms before
the end. These four are to be 0. *refused*: answered with an error before the first token, as is right where
nothing can be made durable.

Each row is written by a run of its own or of several (`--kinds`), with the machine as it was then:"""
_PAGE_TITLE = "Crashes"


@dataclass(slots=True)
class Stream:
    """What a client knows of its stream: when each token came, and whether it was the whole answer."""

    number: int
    tokens: int
    times: list[float] = field(default_factory=list)
    done: bool = False
    broken_at: float | None = None
    refused: int | None = None

    @property
    def request_id(self) -> str:
        """By which the ledger's entry is found."""
        return f"crash-{self.number}"

    def received(self, before: float) -> int:
        """Tokens that had come by then."""
        return sum(1 for at in self.times if at <= before)


async def _stream(http: httpx.AsyncClient, stream: Stream) -> None:
    words = f"number={stream.number} tokens={stream.tokens} pace={PACE_S * 1000:g}"
    body = {"model": "standin", "stream": True, "messages": [{"role": "user", "content": words}]}
    try:
        headers = {"x-request-id": stream.request_id}
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            if response.status_code != 200:
                stream.refused = response.status_code
                return
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    stream.done = True
                elif '"delta":{"content"' in line:
                    stream.times.append(time.monotonic())
    except (httpx.TransportError, asyncio.CancelledError):
        pass
    finally:
        if not stream.done:
            stream.broken_at = time.monotonic()


@dataclass(slots=True)
class Tally:
    """What was found of one kind of disaster."""

    name: str
    rounds: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """A row of the table."""
        names = ("streams", "completed", "broken", "missing", "twice", "too many", "too few", "refused")
        return (
            f"| {self.name} | {self.rounds} | "
            + " | ".join(f"{self.counts[name]:,}" for name in names)
            + " |"
        )

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.counts[name] for name in ("missing", "twice", "too many", "too few"))

    def check(self, site: Site, streams: list[Stream]) -> None:
        """Hold the ledger against what the clients and the engine know."""
        self.rounds += 1
        entries = site.entries()
        for stream in streams:
            self.counts["streams"] += 1
            rows = entries.get(stream.request_id, [])
            self.counts["twice"] += len(rows) > 1
            self.counts["refused"] += stream.refused is not None
            if stream.done:
                self.counts["completed"] += 1
                self.counts["missing"] += rows[:1] != [("completed", PROMPT_TOKENS, stream.tokens)]
                continue
            self.counts["broken"] += stream.refused is None
            if not rows:
                self.counts["missing"] += bool(stream.times)
                continue
            outcome, _, tokens = rows[0]
            self.counts["missing"] += outcome is None
            self.counts["too many"] += tokens > site.generated(stream.number)
            self.counts["too few"] += tokens < stream.received((stream.broken_at or 0.0) - GRACE_S)


Disaster = Callable[[Site, list["asyncio.Task[None]"]], Awaitable[None]]


async def gateway_killed(site: Site, tasks: list["asyncio.Task[None]"]) -> None:
    """SIGKILL, and a new start."""
    site.gateway.child.process.kill()
    site.gateway.child.process.wait()
    await asyncio.gather(*tasks)
    await asyncio.to_thread(site.gateway.start)


async def engine_killed(site: Site, tasks: list["asyncio.Task[None]"]) -> None:
    """SIGKILL, and a new start."""
    site.engine.process.kill()
    site.engine.process.wait()
    await asyncio.gather(*tasks)
    await asyncio.to_thread(site.start_engine)


async def clients_killed(_site: Site, tasks: list["asyncio.Task[None]"]) -> None:
    """All connections are cut."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks)


async def database_away(site: Site, tasks: list["asyncio.Task[None]"]) -> None:
    """Its files are elsewhere, as after a disk has gone, and come back."""
    folder, elsewhere = site.gateway.database.parent, site.gateway.folder / "elsewhere"
    elsewhere.mkdir()
    names = [file.name for file in folder.glob("torpor.db*")]
    for name in names:
        (folder / name).rename(elsewhere / name)
    await asyncio.sleep(AWAY_S)
    for name in names:
        (elsewhere / name).rename(folder / name)
    elsewhere.rmdir()
    await asyncio.gather(*tasks)


async def disk_full(site: Site, tasks: list["asyncio.Task[None]"]) -> None:
    """Fill the disk with another file, which goes away after a while."""
    full = site.gateway.folder / "full"
    with suppress(OSError), full.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    await asyncio.sleep(AWAY_S)
    full.unlink()
    await asyncio.gather(*tasks)


async def _round(site: Site, disaster: Disaster, tally: Tally, count: int, chance: random.Random) -> None:
    streams = [Stream(site.next_number + index, chance.randrange(10, 150)) for index in range(count)]
    site.next_number += count
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=site.gateway.url,
        headers=site.gateway.bearer(),
        timeout=60,
        limits=limits,
        trust_env=False,
    ) as http:
        tasks = [asyncio.create_task(_stream(http, stream)) for stream in streams]
        await asyncio.sleep(chance.uniform(0.5, 100 * PACE_S))
        await disaster(site, tasks)
    for _ in range(150):
        if not _open(site, streams):
            break
        await asyncio.sleep(0.2)
    tally.check(site, streams)


def _open(site: Site, streams: list[Stream]) -> bool:
    """Whether the ledger still works on an entry of these: the database may follow the journal."""
    entries = site.entries()
    checked = [stream for stream in streams if stream.times or stream.done]
    return any(not (rows := entries.get(stream.request_id)) or rows[0][0] is None for stream in checked)


KINDS: dict[str, tuple[str, Disaster]] = {
    "gateway": ("the gateway is killed", gateway_killed),
    "engine": ("the engine is killed", engine_killed),
    "client": ("the clients are killed", clients_killed),
    "database": ("the database is away for 10 s", database_away),
    "disk": ("the disk is full for 10 s", disk_full),
}


async def _run(site: Site, kinds: list[str], arguments: argparse.Namespace) -> list[Tally]:
    chance, tallies = random.Random(arguments.seed), []
    try:
        site.start_engine()
        site.gateway.start()
        for kind in kinds:
            name, disaster = KINDS[kind]
            tally = Tally(name)
            tallies.append(tally)
            for _ in range(arguments.rounds):
                await _round(site, disaster, tally, arguments.streams, chance)
            tally.counts["twice"] += not site.verified()
            print(tally.line(), flush=True)
    finally:
        site.end()
    return tallies


def _write(page: Path, tallies: list[Tally], load: str) -> None:
    """Rows of kinds that this run left out stay as they are, and so do their commands."""
    new = {tally.name: tally.line() for tally in tallies}
    lines = section(page, _PAGE_TITLE).splitlines()
    rows: list[str] = []
    for name, _ in KINDS.values():
        rows += [new[name]] if name in new else [line for line in lines if line.startswith(f"| {name} |")]
    names = "; ".join(new)
    summary = f"- {names}: `{command('loadtest crash-metering').strip()}`. {load}"
    commands = [line for line in lines if line.startswith("- ") and not any(name in line for name in new)]
    parts = [ABOUT, "\n".join([*commands, summary]), "\n".join([_TABLE, *rows])]
    write_section(page, _PAGE_TITLE, "\n\n".join(parts))


def main() -> int:
    """Print the table; exit code 1 where anything is wrong. The full disk needs the right to mount one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30, help="of each kind")
    parser.add_argument("--streams", type=int, default=100, help="at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--write", type=Path, help="the page of benchmarks")
    arguments = parser.parse_args()
    load = circumstances()
    print(_TABLE, flush=True)
    tallies = []
    on_disk = [kind for kind in arguments.kinds if kind != "disk"]
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        if on_disk:
            site = Site(Path(folder))
            tallies += asyncio.run(_run(site, on_disk, arguments))
    if "disk" in arguments.kinds:
        with tempfile.TemporaryDirectory(prefix="crash-") as folder:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], check=True)
            try:
                site = Site(Path(folder))
                tallies += asyncio.run(_run(site, ["disk"], arguments))
            finally:
                subprocess.run(["umount", folder], check=True)
    if arguments.write:
        _write(arguments.write, tallies, load)
    return 0 if all(tally.good for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
