"""One engine: its sandboxed processes, its folder, its output."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coldstart import trees
from coldstart.sandbox import Isolation, Sandbox, SandboxError, launch
from engines import command
from engines.client import EngineClient
from engines.errors import EngineBroken, EngineError
from engines.folders import RunFolder, RunFolders
from engines.output import EngineOutput
from engines.spec import EngineAddress, ModelSpec

_POLL_S = 0.05
_OUTPUT_TIMEOUT_S = 1.0
_SOCKET = "s"


class EngineStartFailed(EngineError):
    """The engine ended, or could not be started, before it answered. The message holds its last words."""


@dataclass(frozen=True, slots=True)
class EngineSite:
    """Where engines run: their folders, and how they are shut in."""

    folders: RunFolders
    isolation: Isolation


class EngineProcess:
    """The processes of one engine, from `start` to `stop`. It is started once.

    ``argv`` makes the command line from the spec and the path of the socket to listen on.
    """

    def __init__(
        self,
        spec: ModelSpec,
        site: EngineSite,
        *,
        argv: Callable[[ModelSpec, Path], Sequence[str]] = command.command,
        health_timeout_s: float = 10.0,
    ) -> None:
        self._spec = spec
        self._site = site
        self._argv = argv
        self._health_timeout_s = health_timeout_s
        self._output = EngineOutput(spec.id)
        self._folder: RunFolder | None = None
        self._sandbox: Sandbox | None = None
        self._client: EngineClient | None = None
        self._ended: asyncio.Task[int] | None = None
        self._stopping: asyncio.Task[None] | None = None

    @property
    def address(self) -> EngineAddress:
        """Where it answers. It has one once it has been started."""
        if self._client is None:
            raise EngineBroken("the engine was never started")
        return self._client.address

    async def start(self) -> None:
        """Return when it answers. Raises `EngineStartFailed`. Whatever happens, `stop` cleans up."""
        try:
            folder = self._folder = self._site.folders.make()
            socket = folder.path / _SOCKET
            writing = await self._output.open()
            try:
                self._sandbox = await launch(
                    self._argv(self._spec, socket),
                    isolation=self._site.isolation,
                    env=command.environment(folder.path, self._site.folders.cache),
                    cwd=folder.path,
                    output=writing,
                )
            finally:
                os.close(writing)
        except (OSError, SandboxError) as error:
            raise EngineStartFailed(f"the engine cannot be started: {error}") from error
        self._ended = asyncio.create_task(self._sandbox.wait())
        self._client = EngineClient(EngineAddress(uds=str(socket)))
        await self._answers(self._ended)

    async def _answers(self, ended: asyncio.Task[int]) -> None:
        while not await self.healthy():
            await asyncio.wait((ended,), timeout=_POLL_S)
            if ended.done():
                await self._output.close(_OUTPUT_TIMEOUT_S)
                raise EngineStartFailed(f"{await self.ended()}\n{self.last_words()}")

    async def ended(self) -> str:
        """Wait until no process of it is left. Says how it ended."""
        if self._ended is None:
            return "the engine was never started"
        code = await asyncio.shield(self._ended)
        if code <= 128:
            return f"the engine ended with exit status {code}"
        try:
            return f"the engine was ended by {signal.Signals(code - 128).name}"
        except ValueError:
            return f"the engine ended with exit status {code}"

    async def healthy(self) -> bool:
        """Whether it answers its health check in time."""
        if self._client is None:
            return False
        try:
            reply = await self._client.request("GET", "/health", timeout_s=self._health_timeout_s)
        except EngineBroken:
            return False
        return reply.status == 200

    def memory_bytes(self) -> int:
        """PSS of all its processes. Reads /proc for some milliseconds: call it in a thread."""
        return trees.memory_bytes(self._sandbox.pids()) if self._sandbox else 0

    def last_words(self) -> str:
        """The last lines of its output."""
        return self._output.last_words()

    async def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, after ``grace_s`` SIGKILL for all; then its folder is removed. Idempotent.

        Goes on in the background when the caller is cancelled.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace_s))
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_s: float) -> None:
        if self._sandbox is not None and self._ended is not None:
            if grace_s > 0:
                self._sandbox.terminate()
                await asyncio.wait((self._ended,), timeout=grace_s)
            if not self._ended.done():
                await self._sandbox.kill()
            await self._ended
        await self._output.close(_OUTPUT_TIMEOUT_S)
        if self._client is not None:
            await self._client.aclose()
        if self._folder is not None:
            await self._folder.remove()
