"""Load: closed loop (so many requests at a time) and open loop (so many a second, whatever becomes of them).

    python -m loadtest generator --url http://127.0.0.1:8080 --key KEY --connections 32 --seconds 5 --stream

The open loop has no coordinated omission: a request is due at its time, and that is from when its latency
counts, also if no connection was free to send it.
"""

import argparse
import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvloop

from loadtest.client import Ask, Connection, Endpoint, Outcome, Tally
from loadtest.collector import collect_rarely

_GRACE_S = 30.0
_TICK_NS = 100_000
_CONNECTING_AT_ONCE = 64
_AT_FIRST = 16
_RETRY_S = 0.05

Source = Callable[[], Ask]
Watch = Callable[[Outcome], None]


def chat_body(
    model: str, *, tokens: int = 16, stream: bool = False, words: str = "", **fields: Any
) -> dict[str, Any]:
    """A body that every gateway takes; ``words`` are for the stand-in (`loadtest.wire`)."""
    content = f"What is the capital of France? {words}".strip()
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}]}
    return {**body, "max_tokens": tokens, **({"stream": True} if stream else {}), **fields}


def chat(
    endpoint: Endpoint,
    model: str,
    *,
    tokens: int = 16,
    stream: bool = False,
    pace_ms: float = 0,
    stamped: bool = False,
) -> Ask:
    """The request of a benchmark."""
    words = [f"pace={pace_ms:g}"] * bool(pace_ms) + ["stamp=1"] * stamped
    body = chat_body(model, tokens=tokens, stream=stream, words=" ".join(words))
    return Ask(endpoint.request(body), stream, tokens if stream else 0, stamped)


@dataclass(slots=True)
class Run:
    """A run's tally, and how many good answers ended in its seconds; the tally has later ones too."""

    tally: Tally
    in_time: int
    seconds: float
    late: int = 0
    """Of the open loop: requests that no connection was free for when they were due."""

    @property
    def per_second(self) -> float:
        """Good answers, in its time."""
        return self.in_time / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, Any]:
        """For the JSON of a run."""
        return {"per_second": round(self.per_second, 1), "late": self.late, **self.tally.summary()}


async def connect(endpoint: Endpoint, count: int) -> list[Connection]:
    """That many connections, opened some at a time. Raises `OSError`, `TimeoutError`."""
    gate = asyncio.Semaphore(_CONNECTING_AT_ONCE)

    async def one() -> Connection:
        async with gate:
            return await endpoint.connect()

    return await asyncio.gather(*(one() for _ in range(count)))


class _Loop:
    """What both loops have: the tally, connections that are replaced, and an end."""

    def __init__(self, endpoint: Endpoint, source: Source, watch: Watch | None) -> None:
        self.endpoint = endpoint
        self.source = source
        self.watch = watch
        self.tally = Tally()
        self.busy = 0
        self.idle = asyncio.Event()
        self._closed = False
        self._all: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    def start(self, opened: list[Connection], spread_s: float = 0.0) -> None:
        """Send requests over these, the first one of each in even steps over so many seconds."""
        self._all.update(opened)
        if not spread_s:
            for connection in opened:
                self.free(connection)
            return
        for number, connection in enumerate(opened):
            asyncio.get_running_loop().call_later(spread_s * number / len(opened), self.free, connection)

    def free(self, connection: Connection) -> None:
        """A connection has nothing to do."""
        raise NotImplementedError

    def ended(self, outcome: Outcome) -> None:
        """A request has an outcome."""
        raise NotImplementedError

    def ask(self, connection: Connection, due: int | None = None) -> None:
        """Send the next request."""
        self.busy += 1
        connection.ask(self.source(), self._answered, self.tally, due)

    def _answered(self, connection: Connection, outcome: Outcome) -> None:
        if self._closed:
            return
        self.busy -= 1
        if self.watch is not None:
            self.watch(outcome)
        self.ended(outcome)
        if connection.usable:
            self.free(connection)
            return
        self.replace(connection)

    def replace(self, connection: Connection) -> None:
        """A connection is closed: another one takes its place."""
        self._all.discard(connection)
        self.open()

    def open(self) -> None:
        """Another connection, which is free once it is there."""
        task = asyncio.get_running_loop().create_task(self._connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        while True:
            try:
                connection = await self.endpoint.connect()
            except (OSError, TimeoutError):
                self.tally.errors["refused"] += 1
                await asyncio.sleep(_RETRY_S)
                continue
            self._all.add(connection)
            self.free(connection)
            return

    def close(self) -> None:
        """End every connection; nothing that they were at is counted."""
        self._closed = True
        for task in self._connecting:
            task.cancel()
        for connection in self._all:
            connection.close()


class _Closed(_Loop):
    """Run so many at a time, until the time is over or so many have been sent."""

    deadline = 0
    left: float = math.inf
    in_time = 0

    def free(self, connection: Connection) -> None:
        if self.left > 0 and time.monotonic_ns() < self.deadline:
            self.left -= 1
            self.ask(connection)
        elif not self.busy:
            self.idle.set()

    def ended(self, outcome: Outcome) -> None:
        self.tally.record(outcome)
        if outcome.end <= self.deadline:
            self.in_time = self.tally.good


class _Open(_Loop):
    """Send so many a second. A connection is opened when one is needed, up to ``most``, and kept."""

    late = 0

    def __init__(self, endpoint: Endpoint, source: Source, watch: Watch | None, most: int) -> None:
        super().__init__(endpoint, source, watch)
        self._most = most
        self._free: list[Connection] = []
        self._due: deque[int] = deque()

    def free(self, connection: Connection) -> None:
        if self._due:
            self.ask(connection, self._due.popleft())
        else:
            self._free.append(connection)
            if not self.busy:
                self.idle.set()

    def ended(self, outcome: Outcome) -> None:
        self.tally.record(outcome)

    def replace(self, connection: Connection) -> None:
        self._all.discard(connection)
        if self._due:
            self._another()
        elif not self.busy:
            self.idle.set()

    def _another(self) -> None:
        if len(self._all) + len(self._connecting) < self._most:
            self.open()

    def arrive(self, due: int) -> None:
        """A request is due."""
        self.idle.clear()
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                self.ask(connection, due)
                return
            self._all.discard(connection)
        self.late += 1
        self._due.append(due)
        self._another()

    @property
    def waiting(self) -> int:
        """Requests that are due and not sent."""
        return len(self._due)


async def closed_loop(
    endpoint: Endpoint,
    source: Source,
    *,
    connections: int,
    seconds: float,
    requests: float = math.inf,
    spread_s: float = 0.0,
    watch: Watch | None = None,
) -> Run:
    """Keep every connection at a request, for that long or that many; they begin within ``spread_s``."""
    loop = _Closed(endpoint, source, watch)
    opened = await connect(endpoint, connections)
    began = time.monotonic_ns()
    loop.deadline, loop.left = began + int(seconds * 1e9), requests
    try:
        loop.start(opened, spread_s)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + seconds + _GRACE_S):
                await loop.idle.wait()
        ended = min(time.monotonic_ns(), loop.deadline)
    finally:
        loop.close()
    return Run(loop.tally, loop.in_time, (ended - began) / 1e9)


async def open_loop(
    endpoint: Endpoint,
    source: Source,
    *,
    rate: float,
    connections: int,
    seconds: float,
    watch: Watch | None = None,
) -> Run:
    """Send ``rate`` requests a second over at most so many connections: 16, and more as they are needed.

    What has no answer 30 s after the last was due counts as an error, "unanswered".
    """
    loop = _Open(endpoint, source, watch, connections)
    opened = await connect(endpoint, min(connections, _AT_FIRST))
    began = ended = time.monotonic_ns()
    try:
        loop.start(opened)
        for due in arrivals(began, rate, seconds):
            left = due - time.monotonic_ns()
            if left > _TICK_NS:
                await asyncio.sleep(left / 1e9)
            loop.arrive(due)
        ended = time.monotonic_ns()
        if loop.busy or loop.waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await loop.idle.wait()
            ended = time.monotonic_ns()
        loop.tally.errors["unanswered"] += loop.busy + loop.waiting
    finally:
        loop.close()
    return Run(loop.tally, loop.tally.good, (ended - began) / 1e9, loop.late)


def arrivals(began: int, rate: float, seconds: float) -> Iterator[int]:
    """When requests are due: evenly, in nanoseconds of CLOCK_MONOTONIC."""
    return (began + int(number * 1e9 / rate) for number in range(int(rate * seconds)))


async def _main(arguments: argparse.Namespace) -> None:
    endpoint = Endpoint.of(arguments.url, arguments.key)
    ask = chat(
        endpoint,
        arguments.model,
        tokens=arguments.tokens,
        stream=arguments.stream,
        pace_ms=arguments.pace,
        stamped=arguments.stamp,
    )
    limits = {"connections": arguments.connections, "seconds": arguments.seconds}
    if arguments.rate:
        run = await open_loop(endpoint, lambda: ask, rate=arguments.rate, **limits)
    else:
        run = await closed_loop(endpoint, lambda: ask, requests=arguments.requests, **limits)
    print(json.dumps(run.summary(), indent=2))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", required=True, help="http://host:port, or unix:/path")
    parser.add_argument("--key", help="bearer token")
    parser.add_argument("--model", default="standin")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--requests", type=float, default=math.inf, help="end after so many")
    parser.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--pace", type=float, default=0, help="milliseconds between tokens")
    parser.add_argument("--stamp", action="store_true", help="measure the delay of each token")
    arguments = parser.parse_args()
    collect_rarely()
    uvloop.run(_main(arguments))


if __name__ == "__main__":
    main()
