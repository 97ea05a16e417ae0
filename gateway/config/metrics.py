"""``[metrics]``: where Prometheus finds the gateway's metrics."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """``[metrics]``: a separate listener, on loopback by default."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 9464
    by_project: bool = False
