"""``[adapters]`` of the configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersConfig:
    """What an upload may take, and what a project may have. Sizes in bytes, times in seconds."""

    max_upload_bytes: int = 512 * 1024**2
    upload_timeout_s: float = 600.0
    uploads_at_once: int = 4
    max_per_project: int = 10_000
    max_bytes_per_project: int = 20 * 1024**3
