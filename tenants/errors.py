"""What tenants/ raises::

TenantError
├── InvalidCredential   the secret opens nothing; ``reason`` says why
├── NotFound            no such thing, or not of this organization
├── Conflict            there is one of that name already
├── InvalidValue        an argument is out of its domain; ``param`` names it
├── QueueFull           too many requests of the project wait for the model
├── QueueTimeout        a request waited for its turn for too long
└── StorageUnavailable  the database is away, locked or full
"""

from typing import Literal

CredentialReason = Literal["missing", "unknown", "expired", "revoked", "archived"]


class TenantError(Exception):
    """Root of what tenants/ raises."""


class InvalidCredential(TenantError):
    """The secret opens nothing."""

    def __init__(self, reason: CredentialReason) -> None:
        super().__init__(f"the credential is {reason}")
        self.reason = reason


class NotFound(TenantError):
    """There is no such thing, or it belongs to another organization."""


class Conflict(TenantError):
    """There is one of that name already."""


class InvalidValue(TenantError):
    """An argument is out of its domain. ``message`` is fit to show to a client."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.message = message


class StorageUnavailable(TenantError):
    """The database is away, locked or full."""


class QueueFull(TenantError):
    """As many requests of the project wait for the model as may wait. ``retry_after_s`` is an estimate."""

    def __init__(self, limit: int, retry_after_s: float) -> None:
        super().__init__(f"{limit} requests wait already")
        self.limit = limit
        self.retry_after_s = retry_after_s


class QueueTimeout(TenantError):
    """The request waited for its turn for ``waited_s`` seconds, which is as long as it may."""

    def __init__(self, waited_s: float, retry_after_s: float) -> None:
        super().__init__(f"no turn within {waited_s:g} s")
        self.waited_s = waited_s
        self.retry_after_s = retry_after_s
