"""An engine's output: logged line by line, the end of it kept, nothing growing without bound."""

import asyncio
import logging
import re
from collections import deque
from typing import BinaryIO

from engines.lifecycle.failure_cause import FailureCause

_LONGEST_LINE = 4096
_KEPT_LINES = 120
_TOLD_LINES = 30
_TOLD_CHARACTERS = 6000

_LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_LEVEL_WITHIN = 60
# Terminal colours and control characters have no place in a log.
_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_BREAK = re.compile(rb"[\r\n]+")

_logger = logging.getLogger("torpor.engine")


class EngineOutput(asyncio.Protocol):
    """Reads the pipe that an engine writes to."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self._kept: deque[str] = deque(maxlen=_KEPT_LINES)
        self._cause = FailureCause()
        self._partial = b""
        self._skipping = False
        self._transport: asyncio.BaseTransport | None = None
        self._ended = asyncio.Event()

    async def read(self, pipe: BinaryIO) -> None:
        """Begin to read."""
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: self, pipe)

    async def close(self, timeout_s: float) -> None:
        """Read to the end, but no longer than so."""
        if self._transport is None:
            return
        try:
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        except TimeoutError:
            self._transport.close()
            await self._ended.wait()

    def cause(self) -> str:
        """Why it ended, in a line, if its output tells."""
        return self._cause.text()

    def last_words(self) -> str:
        """The last lines that say what went wrong, for an operator."""
        lines = [line for line in self._kept if line.strip()]
        return "\n".join(lines[-_TOLD_LINES:])[-_TOLD_CHARACTERS:]

    def data_received(self, data: bytes) -> None:
        *lines, rest = _BREAK.split(data)
        if lines:
            self._line(self._partial + lines[0])
            for line in lines[1:]:
                self._line(line)
            self._partial = b""
            self._skipping = False
        self._partial += rest
        if len(self._partial) > _LONGEST_LINE:
            self._line(self._partial)
            self._partial = b""
            self._skipping = True  # the rest of this line

    def connection_lost(self, exc: Exception | None) -> None:
        self._line(self._partial)
        self._partial = b""
        self._ended.set()

    def _line(self, raw: bytes) -> None:
        if self._skipping:
            self._skipping = False
            return
        if not raw:
            return
        text = _NOISE.sub("", raw[:_LONGEST_LINE].decode(errors="replace"))
        self._kept.append(text)
        self._cause.feed(text)
        level = _LEVEL.search(text, 0, _LEVEL_WITHIN)
        _logger.log(
            logging.getLevelNamesMapping()[level[1]] if level else logging.INFO,
            "%s: %s",
            self._model_id,
            text,
            extra={"model": self._model_id},
        )
