"""What tenants/ raises::

TenantError
├── InvalidCredential   the secret opens nothing; ``reason`` says why
├── IssuerUnavailable   the keys of a token's issuer cannot be had now
├── NotFound            no such thing, or not of this organization
├── Conflict            there is one of that name already
├── InvalidValue        an argument is out of its domain; ``param`` names it
├── RateLimitExceeded   a limit has no room now; ``retry_after_s`` says when it has
├── RequestTooLarge     more tokens than a limit has in all: never will there be room
├── BudgetExceeded      the month's spend limit does not cover the request
├── QuotaExceeded       the project has as many adapters, or bytes of them, as it may
├── QueueFull           too many requests of the project wait for the model
├── QueueTimeout        a request waited for its turn for too long
└── StorageUnavailable  the database is away, locked or full
"""

from typing import Literal

CredentialReason = Literal["missing", "unknown", "expired", "revoked", "archived"]


class TenantError(Exception):
    """Root of what tenants/ raises."""


class InvalidCredential(TenantError):
    """The credential is refused. ``detail`` is for the log, ``shown_detail`` is what a token's sender learns.

    Before a token's signature is verified, that is only what its sender has written into it.
    """

    def __init__(
        self, reason: CredentialReason, detail: str | None = None, shown_detail: str | None = None
    ) -> None:
        super().__init__(f"the credential is {reason}" + (f": {detail}" if detail else ""))
        self.reason = reason
        self.detail = detail
        self.shown_detail = shown_detail


class IssuerUnavailable(TenantError):
    """The keys of a token's issuer cannot be read now, so the token cannot be verified."""


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


class RateLimitExceeded(TenantError):
    """The limit ``name``, of ``limit`` in all, has ``remaining`` left, the request needs ``requested``."""

    def __init__(self, name: str, limit: int, remaining: int, requested: int, retry_after_s: float) -> None:
        super().__init__(f"no room in {name}")
        self.name = name
        self.limit = limit
        self.remaining = remaining
        self.requested = requested
        self.retry_after_s = retry_after_s


class RequestTooLarge(TenantError):
    """The request needs ``requested`` tokens of the limit ``name``, which is of ``limit`` in all."""

    def __init__(self, name: str, limit: int, requested: int) -> None:
        super().__init__(f"larger than all of {name}")
        self.name = name
        self.limit = limit
        self.requested = requested


class BudgetExceeded(TenantError):
    """The spend limit of the ``whose`` does not cover the request. Amounts but the limit's in picodollars."""

    def __init__(
        self,
        whose: Literal["project", "organization"],
        limit_cents: int,
        spent: int,
        reserved: int,
        requested: int,
    ) -> None:
        super().__init__(f"the spend limit of the {whose} does not cover the request")
        self.whose = whose
        self.limit_cents = limit_cents
        self.spent = spent
        self.reserved = reserved
        self.requested = requested


class QuotaExceeded(TenantError):
    """The project has ``used`` of the quota ``name``, of ``limit`` in all, and wants ``requested`` more."""

    def __init__(self, name: str, limit: int, used: int, requested: int) -> None:
        super().__init__(f"no room in the quota of {name}")
        self.name = name
        self.limit = limit
        self.used = used
        self.requested = requested


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
