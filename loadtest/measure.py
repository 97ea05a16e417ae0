"""One measurement: a load for some seconds on a gateway, and what the gateway used in that time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import isnan
from statistics import median
from typing import Any

from loadtest.client import Ask
from loadtest.gateway import Running
from loadtest.generator import Run, chat, closed_loop
from loadtest.processes import Child, Usage

_SAMPLE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A closed loop of one kind of request."""

    name: str
    connections: int
    tokens: int = 16
    stream: bool = False
    pace_ms: float = 0.0
    stamped: bool = False
    spread_s: float = 0.0
    """Paced streams that begin together stay in step, and are a load of bursts."""

    def ask(self, running: Running) -> Ask:
        """The request."""
        return chat(
            running.endpoint,
            running.model,
            tokens=self.tokens,
            stream=self.stream,
            pace_ms=self.pace_ms,
            stamped=self.stamped,
        )


PLAIN = Load(name="plain requests at 32", connections=32)
ALONE = Load(name="plain requests at 1", connections=1)
STREAMS = Load(name="streams at 64, 64 chunks, instant", connections=64, tokens=64, stream=True)
PACED = Load(
    name="streams at 64, paced at 20 ms",
    connections=64,
    tokens=64,
    stream=True,
    pace_ms=20,
    stamped=True,
    spread_s=64 * 0.02,
)
FAST = Load(
    name="16 streams, a token each 2 ms", connections=16, tokens=256, stream=True, pace_ms=2, stamped=True
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load came to on a gateway."""

    target: str
    load: str
    run: Run
    cpu_s: float
    memory_bytes: int
    """The most that the gateway had at any time."""

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU for each good answer."""
        return self.cpu_s * 1e6 / self.run.tally.good if self.run.tally.good else float("nan")

    @property
    def chunks_share(self) -> float:
        """Tokens that arrived, of those that were asked for."""
        tally = self.run.tally
        return tally.tokens / tally.wanted_tokens if tally.wanted_tokens else 1.0

    def summary(self) -> dict[str, Any]:
        """For the JSON."""
        return {
            "target": self.target,
            "load": self.load,
            "cpu_us": round(self.cpu_us, 1),
            "memory_mb": round(self.memory_bytes / 1e6, 1),
            **self.run.summary(),
        }


@asynccontextmanager
async def memory_watched(child: Child) -> AsyncIterator[Callable[[], int]]:
    """The most memory of the process tree while it lasts, bytes of resident set."""
    most = child.usage().memory_bytes

    async def sample() -> None:
        nonlocal most
        while True:
            await asyncio.sleep(_SAMPLE_S)
            most = max(most, child.usage().memory_bytes)

    task = asyncio.create_task(sample())
    try:
        yield lambda: max(most, child.usage().memory_bytes)
    finally:
        task.cancel()


async def measure(running: Running, load: Load, *, seconds: float, warm_up_s: float = 1.0) -> Measured:
    """Warms the gateway up, then loads it for so many seconds."""
    ask = load.ask(running)

    def source() -> Ask:
        return ask

    if warm_up_s:
        await closed_loop(running.endpoint, source, connections=load.connections, seconds=warm_up_s)
    async with memory_watched(running.child) as most:
        before: Usage = running.child.usage()
        run = await closed_loop(
            running.endpoint,
            source,
            connections=load.connections,
            seconds=seconds,
            spread_s=load.spread_s,
        )
        cpu_s = running.child.usage().cpu_s - before.cpu_s
        return Measured(running.name, load.name, run, cpu_s, most())


@dataclass(frozen=True, slots=True)
class Series:
    """The same figure of several rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.values)

    def told(self, digits: int = 0) -> str:
        """The median, and the range where there is one."""
        low, high = min(self.values), max(self.values)
        if isnan(self.median):
            return "–"
        middle = f"{self.median:,.{digits}f}"
        return middle if len(self.values) == 1 else f"{middle} ({low:,.{digits}f}–{high:,.{digits}f})"
