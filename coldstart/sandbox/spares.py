"""Sandboxes kept ready: making one takes 60 ms, most of it Python's start, which no wake should wait for."""

import asyncio
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from coldstart.sandbox import process_tree
from coldstart.sandbox.control_groups import ControlGroups
from coldstart.sandbox.namespaces import Isolation, Sandbox, SandboxError, launch
from coldstart.sandbox.root_layout import RootLayout

_REFILL_DELAY_S = 0.5
_logger = logging.getLogger("torpor.sandbox")


@dataclass(frozen=True, slots=True)
class WarmSandbox:
    """An empty sandbox, and the reading end of the pipe that its outputs go to, with that pipe's inode."""

    sandbox: Sandbox
    output: BinaryIO
    pipe: int

    async def close(self) -> None:
        """End it."""
        self.output.close()
        await self.sandbox.kill()


async def create_warm_sandbox(
    isolation: Isolation, layout: RootLayout, cwd: Path, groups: ControlGroups | None = None
) -> WarmSandbox:
    """``cwd``: the folder that its first process is in, by which it can be known.

    It has a control group of its own among ``groups``. Raises `SandboxError`, OSError.
    """
    group = None if groups is None else groups.create(secrets.token_hex(4))
    reading, writing = os.pipe()
    output = os.fdopen(reading, "rb")
    try:
        pipe = os.fstat(writing).st_ino
        return WarmSandbox(
            await launch(isolation, layout, cwd=cwd, output=writing, group=group), output, pipe
        )
    except BaseException:
        output.close()
        raise
    finally:
        os.close(writing)


class SandboxPool:
    """Keeps ``count`` sandboxes ready. Call its methods in one event loop."""

    def __init__(
        self,
        isolation: Isolation,
        layout: RootLayout,
        cwd: Path,
        count: int,
        groups: ControlGroups | None = None,
    ) -> None:
        self.isolation = isolation
        self.layout = layout
        self.groups = groups
        self._cwd = cwd
        self._count = count
        self._ready: list[WarmSandbox] = []
        self._filling: asyncio.Task[None] | None = None
        self._closed = False

    async def take(self) -> WarmSandbox:
        """A warm sandbox: one that is ready, or a new one. Raises `SandboxError`, OSError."""
        while self._ready:
            warm = self._ready.pop()
            if warm.sandbox.alive:
                return warm
            await warm.close()
        return await create_warm_sandbox(self.isolation, self.layout, self._cwd, self.groups)

    def refill(self, delay_s: float = _REFILL_DELAY_S) -> None:
        """Make what is missing, in a while: the request that woke an engine needs the processor first."""
        if self._filling is None and not self._closed and len(self._ready) < self._count:
            self._filling = asyncio.create_task(self._fill(delay_s))

    async def _fill(self, delay_s: float) -> None:
        try:
            await asyncio.sleep(delay_s)
            while len(self._ready) < self._count and not self._closed:
                self._ready.append(
                    await create_warm_sandbox(self.isolation, self.layout, self._cwd, self.groups)
                )
        except (SandboxError, OSError) as error:
            _logger.warning("no spare sandbox: %s", error)
        finally:
            self._filling = None

    def memory_bytes(self) -> int:
        """PSS of the sandboxes that are ready. Reads /proc: call it in a thread."""
        return process_tree.memory_bytes(pid for warm in list(self._ready) for pid in warm.sandbox.pids())

    async def close(self) -> None:
        """End all spare sandboxes that were not taken."""
        self._closed = True
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait((self._filling,))
        while self._ready:
            await self._ready.pop().close()
