"""Streams that are open together, and streams whose clients disconnect."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from loadtest.client import Ask, Connection, Outcome, Tally
from loadtest.gateway import Running
from loadtest.generator import chat_body, connect
from loadtest.histogram import Histogram
from loadtest.targets import Engine

PACE_MS = 250.0
_GRACE_S = 30.0
_SETTLE_S = 1.0
_FREED_WITHIN_S = 5.0
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class OpenStreams:
    """What came of so many streams at a time: all have been there from the ramp's end for the hold's time."""

    count: int
    tally: Tally
    held_tokens: Histogram
    """Delays of tokens while all were open."""
    memory_bytes: int
    """More than before the first connection."""
    cpu_share: float
    """Of one core, while all were open."""

    @property
    def dropped(self) -> int:
        """Streams that did not come to their end with every token."""
        return self.count - self.tally.good


async def hold_open(running: Running, *, streams: int, ramp_s: float, hold_s: float) -> OpenStreams:
    """Open so many streams within ``ramp_s``, a token each 250 ms, that stay for ``hold_s`` after that."""
    tokens = int((ramp_s + hold_s + _SETTLE_S) * 1000 / PACE_MS) + 1
    body = chat_body(running.model, tokens=tokens, stream=True, words=f"pace={PACE_MS:g} stamp=1")
    ask = Ask(running.endpoint.request(body), streamed=True, tokens=tokens, stamped=True)
    before = running.child.usage()
    tally, left, over = Tally(), streams, asyncio.Event()

    def one_less() -> None:
        nonlocal left
        left -= 1
        if not left:
            over.set()

    def ended(_connection: object, outcome: Outcome) -> None:
        tally.record(outcome)
        one_less()

    connections: list[Connection] = []
    try:
        began = time.monotonic()
        for number in range(streams):
            late = began + ramp_s * number / streams - time.monotonic()
            if late > 0:
                await asyncio.sleep(late)
            try:
                connections.append(await running.endpoint.connect())
            except (OSError, TimeoutError):
                tally.errors["refused"] += 1
                one_less()
            else:
                connections[-1].ask(ask, ended, tally)
        await asyncio.sleep(_SETTLE_S)
        tally.delay = Histogram()
        opened = running.child.usage()
        await asyncio.sleep(hold_s)
        held, delay = running.child.usage(), tally.delay
        tally.delay = Histogram()
        with suppress(TimeoutError):
            async with asyncio.timeout(ramp_s + _GRACE_S):
                await over.wait()
    finally:
        for connection in connections:
            connection.close()
    return OpenStreams(
        streams,
        tally,
        delay,
        max(opened.memory_bytes, held.memory_bytes) - before.memory_bytes,
        (held.cpu_s - opened.cpu_s) / hold_s,
    )


_KINDS = ("a token each 20 ms", "between two tokens, 10 s apart", "before a plain answer")


@dataclass(frozen=True, slots=True)
class Freed:
    """How long after the client's disconnection the engine was free; None where it went on."""

    kind: str
    seconds: float | None


async def disconnect(running: Running, engine: Engine, times: int) -> list[Freed]:
    """Break off so many requests of each kind in turn, and ask the engine when it was told."""
    durations = []
    for number in range(times):
        for index, kind in enumerate(_KINDS):
            tag = f"cut-{running.name}-{number}-{index}"
            durations.append(Freed(kind, await _cut(running, engine, index, tag)))
    return durations


async def _cut(running: Running, engine: Engine, kind: int, tag: str) -> float | None:
    pace_ms, cut_after = ((20, 5), (10_000, 1), (10_000, None))[kind]
    stream = cut_after is not None
    body = chat_body(running.model, tokens=1000, stream=stream, words=f"pace={pace_ms} tag={tag}")
    ask = Ask(running.endpoint.request(body), stream, 1000 if stream else 0, cut_after=cut_after)
    (connection,) = await connect(running.endpoint, 1)
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    tally = Tally()
    connection.ask(ask, lambda _connection, outcome: ended.set_result(outcome.end), tally)
    if not stream:
        await asyncio.sleep(0.2)
        connection.close()
    async with asyncio.timeout(_FREED_WITHIN_S):
        cut = await ended / 1e9
    deadline = time.monotonic() + _FREED_WITHIN_S
    while time.monotonic() < deadline:
        ending = (await engine.state()).tags.get(tag)
        if ending is not None:
            return max(0.0, ending.at - cut)
        await asyncio.sleep(_POLL_S)
    return None
