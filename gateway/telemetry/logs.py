"""Structured logs: one JSON object, or one line of ``key=value`` text, for each record."""

import asyncio
import logging
import os
import stat
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file that is rotated before it is larger than ``max_bytes``; ``kept`` older ones stay beside it.

    A new one has the mode of the one before.
    """

    path: Path
    max_bytes: int
    kept: int

    def begin(self) -> None:
        """Put what is there aside, as a rotation does. Raises OSError."""
        mode = stat.S_IMODE(self.path.stat().st_mode) if self.path.exists() else None
        with closing(RotatingFileHandler(self.path, backupCount=self.kept, delay=True)) as handler:
            handler.doRollover()
        if mode is not None:
            self.path.touch(mode=0o600)
            self.path.chmod(mode)


def configure_logging(level: str, log_format: str, file: LogFile | None = None) -> None:
    """Send every log of the process to the file, or else to standard error.

    ``level`` is a name of the standard library's, in lower case; ``log_format`` is ``json`` or ``text``.
    uvicorn's own lines keep to warnings: the access line is the gateway's. Raises OSError where the file
    cannot be written.
    """
    handler = Grouped(logging.StreamHandler(sys.stderr) if file is None else _RotatedFile(file))
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    # No line shows them, and each would be asked for at each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn", "uvicorn.error", "httpx", "httpcore", "alembic", "aiosqlite", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Grouped(logging.Handler):
    """What is logged in one turn of the event loop goes to ``target`` together, at its end.

    Outside a loop each line goes at once.
    """

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record))
        except Exception:  # noqa: BLE001 - as every handler does: a line that cannot be made must not raise
            self.handleError(record)
            return
        if len(self._lines) > 1:
            return
        try:
            asyncio.get_running_loop().call_soon(self.flush)
        except RuntimeError:
            self.flush()

    def flush(self) -> None:
        """What has been logged is with the target."""
        with self.lock or nullcontext():
            lines, self._lines = self._lines, []
            if lines:
                self._target.handle(logging.makeLogRecord({"msg": "\n".join(lines)}))
            self._target.flush()

    def close(self) -> None:
        self.flush()
        self._target.close()
        super().close()


class _RotatedFile(RotatingFileHandler):
    """Standard output and error that lead to the file are led to the next one when it is rotated.

    What is written past the logs (the start's failures, the stack of a crash) is thus never in a file that
    has been deleted, and counts for the size.
    """

    def __init__(self, file: LogFile) -> None:
        super().__init__(file.path, maxBytes=file.max_bytes, backupCount=file.kept, encoding="utf-8")

    def doRollover(self) -> None:  # noqa: N802 - the standard library's name
        following = [descriptor for descriptor in (1, 2) if _leads_to(descriptor, self.baseFilename)]
        mode = None if self.stream is None else stat.S_IMODE(os.fstat(self.stream.fileno()).st_mode)
        super().doRollover()
        if self.stream is None:
            return
        if mode is not None:
            os.fchmod(self.stream.fileno(), mode)
        for descriptor in following:
            os.dup2(self.stream.fileno(), descriptor)


def _leads_to(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``ts`` (unix seconds), ``level``, ``logger``, ``message``, then its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """A line to read at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {key}={_plain(value)}" for key, value in getattr(record, "fields", {}).items())
        name = record.name.removeprefix("torpor.")
        line = f"{at} {record.levelname.lower():7} {name}: {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _plain(value: object) -> str:
    """The value on one line: what a client sent can hold a line break, and must not forge a line."""
    return str(value).encode("unicode_escape").decode()
