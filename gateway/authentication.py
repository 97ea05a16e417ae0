"""Who asks: the bearer key of a request turned into a principal, and what it opens."""

from starlette.requests import Request

from gateway.context import record_of
from gateway.errors import insufficient_scope
from gateway.services import services_of
from tenants.errors import InvalidCredential
from tenants.types import KeyKind, Principal

MODEL_REQUEST = "model.request"
MODEL_READ = "model.read"
_MAX_KEY_CHARACTERS = 512
_OPENS = {
    KeyKind.ROOT: "the host itself, under /v1/torpor",
    KeyKind.ADMIN: "the administration of one organization, under /v1/organization",
    KeyKind.PROJECT: "inference",
}


async def authenticate(request: Request, *kinds: KeyKind, scope: str | None = None) -> Principal:
    """The principal behind the bearer key.

    Raises `InvalidCredential` (401) for a key that is missing, unknown, expired or revoked, and 403
    ``insufficient_scope`` for one of another kind than ``kinds``, or without ``scope``.
    """
    record = record_of(request.scope)
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise InvalidCredential("missing")
    if len(secret) > _MAX_KEY_CHARACTERS:
        raise InvalidCredential("unknown")
    principal = await services_of(request).tenants.authenticate(secret)
    record.principal = principal
    record.auth_ms = record.elapsed_ms()
    if principal.kind not in kinds:
        wanted = " or ".join(f"a {kind} key" for kind in kinds)
        raise insufficient_scope(
            f"This is a {principal.kind} key: it opens {_OPENS[principal.kind]}. This call needs {wanted}."
        )
    if scope is not None and "all" not in principal.scopes and scope not in principal.scopes:
        raise insufficient_scope(f"This key lacks the scope {scope!r}.")
    return principal
