"""What tenants/ raises::

TenantError
├── InvalidCredential   the secret opens nothing; ``reason`` says why
├── IssuerUnavailable   the keys of a token's issuer cannot be had now
├── NotFound            no such thing, or not of this organization
├── Conflict            there is one of that name already
├── InvalidValue        an argument is out of its domain; ``param`` names it
└── StorageUnavailable  the database is away, locked or full
"""

from typing import Literal

CredentialReason = Literal["missing", "unknown", "expired", "revoked", "archived"]


class TenantError(Exception):
    """Root of what tenants/ raises."""


class InvalidCredential(TenantError):
    """The secret opens nothing. ``detail`` is for the log alone: it would help whoever forges tokens."""

    def __init__(self, reason: CredentialReason, detail: str | None = None) -> None:
        super().__init__(f"the credential is {reason}" + (f": {detail}" if detail else ""))
        self.reason = reason
        self.detail = detail


class IssuerUnavailable(TenantError):
    """The keys of a token's issuer cannot be had now: whether the token is good, nobody can say."""


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
