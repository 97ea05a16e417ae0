"""How patient a host is with its engines."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPolicy:
    """Times, in seconds.

    After a failed start the next one may begin ``backoff_s`` later, twice that after the next failure, and so
    on up to ``backoff_max_s``. After a crash it may begin at once, unless the engine crashes again within
    ``stable_s``. A snapshot that could not be made is tried again after ``snapshot_retry_s``, twice that
    after the next failure, and so on.
    """

    backoff_s: float = 1.0
    backoff_max_s: float = 60.0
    stable_s: float = 60.0
    drain_timeout_s: float = 30.0
    stop_grace_s: float = 10.0
    health_interval_s: float = 5.0
    health_failures: int = 3
    restore_timeout_s: float = 20.0
    dump_timeout_s: float = 120.0
    spare_sandboxes: int = 1
    keep_alive_s: float = 60.0
    inspect_interval_s: float = 0.0
    snapshot_retry_s: float = 60.0

    def backoff_after_s(self, failures: int) -> float:
        """How long to wait after one more than so many failures; less than none: not at all."""
        return min(self.backoff_max_s, self.backoff_s * 2.0 ** min(failures, 30)) if failures >= 0 else 0.0
