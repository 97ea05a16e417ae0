"""Garbage collection in a process that measures, or is measured through."""

import gc


def collect_rarely() -> None:
    """What is there now is never looked at again, and the rest rarely: no token waits for a collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
