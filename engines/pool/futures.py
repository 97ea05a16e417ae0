"""Futures that a caller may have cancelled."""

import asyncio
from typing import Any


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Fail the future, unless it is done or cancelled."""
    if not future.done():
        future.set_exception(error)
