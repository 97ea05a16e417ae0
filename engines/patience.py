"""How long an engine may take for what depends on its model's size. All such limits are computed here.

An engine that hangs must be ended, and one that is merely large must not be. A limit is a floor for what
every engine does, plus the time to move the model's bytes at a disk's speed, plus the time to compute tokens
at a processor's speed. Both speeds are measured where they can be (the disk by a short write before a dump,
the processor by the canary at its recording) and divided by a slack, since other engines may be at work.
Where a speed has not been measured, a slow machine's is assumed: one that emulates the data type.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from coldstart.snapshots.store import Snapshot
from engines.spec import ModelSpec

# Bytes of an engine beside its weights and its KV cache, which a dump writes too.
_PROCESS_BYTES = 1_500_000_000
# Assumed where nothing was measured: a hard disk, and weights that are multiplied by one token each second.
_DISK_BYTES_PER_S = 50_000_000.0
_WEIGHT_BYTES_PER_S = 2_500_000_000.0
# What a dump moves at most in a second however fast the disk is: CRIU and the copying take their time.
_DUMP_BYTES_PER_S = 100_000_000.0
# A measured time may be so many times longer while other engines compute, or read the same disk.
_SLACK = 8.0
# Tokens of a short request, and of everything that the recording of a canary asks.
_REQUEST_TOKENS = 64
_RECORDING_TOKENS = 256
# The most tokens of a step where the engine does not tell: vLLM's default for a server on the CPU.
_BATCH_TOKENS = 2048
_PROBE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits in seconds for one engine.

    ``weights_bytes``: of the model. ``token_s``: measured seconds for each token of a prompt.
    ``batch_tokens``: the most tokens that one step of the engine computes, canary and requests together.
    """

    weights_bytes: int = 0
    token_s: float | None = None
    batch_tokens: int = _BATCH_TOKENS

    @classmethod
    def of(cls, spec: ModelSpec) -> Self:
        """For an engine of which nothing is known but its files."""
        return cls(spec.weights_bytes())

    @classmethod
    def of_snapshot(cls, spec: ModelSpec, snapshot: Snapshot) -> Self:
        """For an engine that is restored: its canary was timed when it was recorded."""
        canary: Any = snapshot.manifest.canary or {}
        ms, prompt = canary.get("ms"), canary.get("prompt")
        token_s = ms / 1000 / len(prompt) if ms and prompt else None
        return cls(spec.weights_bytes(), token_s, canary.get("batch_tokens") or _BATCH_TOKENS)

    @property
    def reading_s(self) -> float:
        """To read the weights from a disk."""
        return self.weights_bytes / _DISK_BYTES_PER_S

    def computing_s(self, tokens: int) -> float:
        """To compute so many tokens of prompts."""
        assumed_s = self.weights_bytes / _WEIGHT_BYTES_PER_S
        return tokens * (assumed_s if self.token_s is None else _SLACK * self.token_s)

    @property
    def request_s(self) -> float:
        """For a short request, also an engine's first one, which imports and prepares what is missing."""
        return 120.0 + self.reading_s + self.computing_s(_REQUEST_TOKENS)

    @property
    def canary_s(self) -> float:
        """To record a canary, of an engine or of an adapter."""
        return 30.0 + self.reading_s + self.computing_s(_RECORDING_TOKENS)

    @property
    def sleep_s(self) -> float:
        """For an engine to give up its caches."""
        return 20.0 + self.reading_s

    def dump_s(self, floor_s: float, disk_bytes_per_s: float) -> float:
        """For a dump to a disk that writes so fast."""
        speed = min(_DUMP_BYTES_PER_S, disk_bytes_per_s / _SLACK)
        return floor_s + (self.weights_bytes and (self.weights_bytes + _PROCESS_BYTES) / speed)

    def restore_s(self, floor_s: float) -> float:
        """Until a restored engine answers: it reads a part of its memory, the weights not yet."""
        return floor_s + self.reading_s

    def wake_s(self, floor_s: float, spec: ModelSpec) -> float:
        """For a wake that has its memory: a restore that fails, and a start."""
        return self.restore_s(floor_s) + spec.start_timeout_s

    def proof_s(self, floor_s: float) -> float:
        """Until a canary has answered, whose step computes the first requests too, and reads all weights."""
        return floor_s + self.reading_s + self.computing_s(self.batch_tokens)

    @property
    def trial_s(self) -> float:
        """For a new snapshot to be restored, proven and asked once."""
        return self.restore_s(60.0) + self.canary_s + 2 * self.request_s


def write_speed(folder: Path) -> float:
    """Bytes that the disk below ``folder`` takes in a second, measured by writing 16 MiB. Raises OSError."""
    data = os.urandom(_PROBE_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return _PROBE_BYTES / (time.perf_counter() - began)
