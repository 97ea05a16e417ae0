"""Structured logs: one JSON object, or one line of ``key=value`` text, for each record."""

import logging
import sys
import time
from typing import Any

import msgspec


def configure_logging(level: str, log_format: str) -> None:
    """Sends every log of the process to standard error.

    ``level`` is a name of the standard library's, in lower case; ``log_format`` is ``json`` or ``text``.
    uvicorn's own lines keep to warnings: the access line is the gateway's.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn", "uvicorn.error", "httpx", "httpcore", "alembic", "aiosqlite", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


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
