"""What is metered: attempts, their tokens, their durations and how they ended."""

import os
import random
import time
from enum import StrEnum

import msgspec

_random = random.Random()  # noqa: S311 - unique, not secret
os.register_at_fork(after_in_child=_random.seed)


class Outcome(StrEnum):
    """How an attempt ended.

    ``completed``: the whole answer was made. ``aborted``: the client went away. ``failed``: upstream failed
    or refused. ``interrupted``: the gateway itself ended before the attempt did.
    """

    COMPLETED = "completed"
    ABORTED = "aborted"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Operation(StrEnum):
    """What was asked of the model."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one attempt. ``input_tokens`` includes ``cached_tokens``; ``estimated``: not counted."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False


def new_attempt_id() -> str:
    """An id that is unique, and greater than those of an earlier millisecond.

    In the order of time, the index of the ledger's table grows at its end instead of everywhere.
    """
    return f"att_{time.time_ns() // 1_000_000:012x}{_random.getrandbits(80):020x}"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a request at an engine.

    ``id`` is the gateway's own and unique; ``request_id`` is the client's, only for finding things again.
    ``started_at`` is in unix seconds and decides the bucket in reports.
    """

    id: str
    request_id: str
    organization_id: str
    project_id: str
    api_key_id: str
    user_id: str | None
    model: str
    operation: Operation
    started_at: float
    adapter: str | None = None
    batch: bool = False
    service_tier: str | None = None


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in milliseconds, where known; ``tier`` is the sleep tier that the request found."""

    queue_ms: float | None = None
    wake_ms: float | None = None
    ttft_ms: float | None = None
    total_ms: float | None = None
    tier: str | None = None
