"""Who asks: the bearer credential of a request turned into a principal, and what it opens."""

import math

from starlette.requests import Request
from starlette.types import Scope

from gateway.http.context import RequestRecord, record_of
from gateway.http.errors import ApiError, insufficient_scope, invalid_request, too_many_failures
from gateway.services import Services, services_of
from tenants.audit import Actor, act_as
from tenants.errors import InvalidCredential, TenantError
from tenants.scopes import grants
from tenants.tokens.envelope import MAX_TOKEN_CHARACTERS, too_long
from tenants.types import KeyKind, OrganizationPrincipal, Principal, ProjectPrincipal

_KEY = {KeyKind.ROOT: "a root key", KeyKind.ADMIN: "an admin key", KeyKind.PROJECT: "a project key"}
_OPENS = {
    KeyKind.ROOT: "the host itself, under /v1/torpor",
    KeyKind.ADMIN: "the administration of one organization, under /v1/organization",
    KeyKind.PROJECT: "inference",
}


async def authenticate(request: Request, *kinds: KeyKind, scope: str | None = None) -> Principal:
    """The principal behind the key or token, which comes as a bearer credential or in ``x-api-key``.

    Raises 400 for several credentials, `InvalidCredential` (401) for one that is missing, unknown, expired or
    revoked, 403 ``insufficient_scope`` for one of another kind than ``kinds``, or without ``scope``, and 429
    where the address has tried too many wrong ones. A credential in memory is never refused for that.
    """
    record, services = record_of(request.scope), services_of(request)
    authorization = _authorization(request.scope)
    try:
        principal = await _principal(request, services, authorization)
    except (TenantError, ApiError) as error:
        _tell(services, record, error)
        raise
    record.principal = principal
    record.auth_ms = record.elapsed_ms()
    if principal.kind not in kinds:
        needed = " or ".join(_KEY[kind] for kind in kinds)
        services.counts.authentication("insufficient_scope")
        raise insufficient_scope(
            f"This is {_KEY[principal.kind]}: it opens {_OPENS[principal.kind]}. This call needs {needed}."
        )
    if scope is not None and not grants(principal.scopes, scope):
        services.counts.authentication("insufficient_scope")
        raise insufficient_scope(f"This key lacks the scope {scope!r}.")
    services.counts.authentication("ok")
    if principal.kind is not KeyKind.PROJECT:
        act_as_caller(request, principal)
    return principal


async def authenticate_project(request: Request, *, scope: str | None = None) -> ProjectPrincipal:
    """As `authenticate`, for the keys and tokens of projects alone."""
    principal = await authenticate(request, KeyKind.PROJECT, scope=scope)
    assert isinstance(principal, ProjectPrincipal)  # noqa: S101 - for the type: its kind has been checked
    return principal


async def authenticate_member(
    request: Request, *kinds: KeyKind, scope: str | None = None
) -> OrganizationPrincipal:
    """As `authenticate`, for kinds of keys that belong to an organization."""
    principal = await authenticate(request, *kinds, scope=scope)
    assert isinstance(principal, OrganizationPrincipal)  # noqa: S101 - for the type, likewise
    return principal


def act_as_caller(request: Request, principal: Principal) -> None:
    """What the request changes is recorded as the principal's act."""
    act_as(Actor(principal.key_id, principal.kind, _address(request), request.headers.get("user-agent")))


def _authorization(scope: Scope) -> str:
    """The value of ``Authorization``, which ``x-api-key`` alone stands for.

    Raises 400 if the request has several credentials: it would be ambiguous which one counts.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    fields = dict(headers)
    if len(fields) != len(headers):
        names = [name for name, _ in headers]
        for name in ("Authorization", "x-api-key"):
            if names.count(name.lower().encode()) > 1:
                raise _ambiguous(f"more than one {name} header")
    authorization, api_key = fields.get(b"authorization"), fields.get(b"x-api-key")
    if api_key is not None:
        if authorization is None:
            return f"Bearer {api_key.decode('latin-1').strip()}"
        if authorization.partition(b" ")[2].strip() != api_key.strip():
            raise _ambiguous("an x-api-key header that differs from the key in its Authorization header")
    return "" if authorization is None else authorization.decode("latin-1")


def _ambiguous(what: str) -> ApiError:
    return invalid_request(f"The request has {what}. Send one credential.", code="ambiguous_credentials")


async def _principal(request: Request, services: Services, authorization: str) -> Principal:
    scheme, _, secret = authorization.partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise InvalidCredential("missing")
    if len(secret) > MAX_TOKEN_CHARACTERS:
        raise too_long()
    cached = services.tenants.credentials.known(secret)
    if cached is not None:
        return cached
    address = _address(request)
    blocked_s = services.failures.blocked_s(address)
    if blocked_s > 0:
        raise too_many_failures(math.ceil(blocked_s))
    try:
        return await services.tenants.credentials.authenticate(secret)
    except InvalidCredential as error:
        # An expired key was valid once: it was not guessed, and costs no query.
        if error.reason != "expired":
            services.failures.failed(address)
        raise


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _tell(services: Services, record: RequestRecord, error: Exception) -> None:
    """Count the failure, and note for the log what the client is not told."""
    if isinstance(error, InvalidCredential):
        record.refusal = f"{error.reason}: {error.detail}" if error.detail else error.reason
        services.counts.authentication(error.reason)
    elif isinstance(error, ApiError):
        services.counts.authentication("too_many_failures")
    else:
        services.counts.authentication("unavailable")
