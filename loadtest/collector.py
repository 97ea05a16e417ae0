"""Garbage collection in a process that measures, or is measured through."""

import gc


def collect_rarely() -> None:
    """What there is now is never looked at again, what comes later rarely: no token waits for a collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
