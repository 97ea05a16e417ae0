"""``[alerts]``: how spend alerts are told."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.config.faults import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsConfig:
    """``[alerts]``. Times are in seconds. Without ``smtp_host`` there are no alerts by email."""

    smtp_host: str | None = None
    smtp_port: int = 587
    smtp_user: str | None = None
    smtp_password_env: str | None = None
    smtp_from: str | None = None
    starttls: bool = True
    allow_private_addresses: bool = False
    timeout_s: float = 10.0
    max_attempts: int = 12
    retry_base_s: float = 5.0
    check_every_s: float = 300.0


def alerts_faults(alerts: AlertsConfig, environment: Mapping[str, str]) -> Iterator[Fault]:
    """What is wrong with the section."""
    if not 0 < alerts.smtp_port < 65536:
        yield Fault("alerts", "smtp_port", f"must be between 1 and 65535, not {alerts.smtp_port}")
    if alerts.smtp_host is not None and alerts.smtp_from is None:
        yield Fault("alerts", "smtp_from", "is required with smtp_host")
    if alerts.smtp_from is not None and not is_address(alerts.smtp_from):
        yield Fault("alerts", "smtp_from", "must be an address of email, such as torpor@example.com")
    if (alerts.smtp_user is None) != (alerts.smtp_password_env is None):
        yield Fault("alerts", "smtp_user", "smtp_user and smtp_password_env go together")
    if alerts.smtp_password_env is not None and alerts.smtp_password_env not in environment:
        yield Fault("alerts", "smtp_password_env", f"{alerts.smtp_password_env} is not set")


_SPECIAL = frozenset('<>,;:"()[]\\@')


def is_address(text: str) -> bool:
    """Whether this is one plain address of email: ASCII, and nothing that needs quotes."""
    local, at, domain = text.rpartition("@")
    if not at or not 0 < len(local) <= 64 or not 0 < len(domain) <= 253:
        return False
    return all("!" <= character <= "~" and character not in _SPECIAL for character in local) and all(
        character.isascii() and (character.isalnum() or character in ".-") for character in domain
    )
