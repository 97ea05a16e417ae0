"""Runs the checks of one client and prints what came of each as a JSON object: ``ok``, or the error.

Run with the environment of the clients, which has none of Torpor's packages: the scripts beside this file
import nothing but their client and this.
"""

import asyncio
import inspect
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

MODEL = os.environ["MODEL"]
EMBED_MODEL = os.environ["EMBED_MODEL"]
BASE_URL = os.environ["OPENAI_BASE_URL"]
API_KEY = os.environ["OPENAI_API_KEY"]
QUESTION = "What is the weather in Rome?"

Check = Callable[[], Any]


def report(package: str, **checks: Check) -> None:
    """Print the version, and for each check ``ok`` or what was raised. A check may be asynchronous."""
    outcomes = {name: _outcome(check) for name, check in checks.items()}
    print(json.dumps({"version": version(package), **outcomes}))


def _outcome(check: Check) -> str:
    try:
        result = check()
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return "ok"


def expect(good: bool, what: object) -> None:
    """Check a condition. Raises AssertionError with the value that was there instead."""
    if not good:
        raise AssertionError(f"unexpected: {what!r}")
