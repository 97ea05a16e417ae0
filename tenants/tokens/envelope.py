"""The shape of a token, read before anything in it is believed."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tenants.errors import CredentialReason, InvalidCredential

MAX_TOKEN_CHARACTERS = 8192
_MAX_KID_CHARACTERS = 256
_REFUSED_HEADERS = ("crit", "jku", "jwk", "x5u", "b64", "zip")
"""What would have a token bring its own key, or change how it is read."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a token says of itself. Nothing of it is verified."""

    algorithm: str
    kid: str | None
    issuer: str


def looks_like_token(text: str) -> bool:
    """Whether the text can be a JWT at all: a JSON object in base64url, and two more parts."""
    return text.startswith("eyJ") and text.count(".") == 2


def open_envelope(token: str) -> Envelope:
    """Read a token's claims, unverified. Raises `InvalidCredential` for what is not an acceptable JWT."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise too_long()
    first, second, _ = token.split(".")
    header, payload = _object(first), _object(second)
    for name in _REFUSED_HEADERS:
        if name in header:
            raise refused(f"its header {name!r} is not allowed")
    algorithm, kid, issuer = header.get("alg"), header.get("kid"), payload.get("iss")
    if not isinstance(algorithm, str) or not isinstance(issuer, str):
        raise refused("it has no alg, or no iss")
    if kid is not None and (not isinstance(kid, str) or len(kid) > _MAX_KID_CHARACTERS):
        raise refused("its kid is not a short string")
    return Envelope(algorithm, kid, issuer)


def too_long() -> InvalidCredential:
    """The refusal of what is larger than any token."""
    return refused(f"it is longer than {MAX_TOKEN_CHARACTERS} characters")


def refused(
    detail: str, shown_detail: str | None = None, reason: CredentialReason = "unknown"
) -> InvalidCredential:
    """The error for a refused token. ``shown_detail``: what its sender learns, if that is not ``detail``."""
    return InvalidCredential(reason, detail, shown_detail or detail)


def _object(segment: str) -> Mapping[str, Any]:
    try:
        decoded = base64.b64decode(segment.encode("ascii") + b"=" * (-len(segment) % 4), b"-_", True)
        value = msgspec.json.decode(decoded)
    except (ValueError, binascii.Error, RecursionError) as error:
        raise refused("it is not made of JSON objects in base64url") from error
    if not isinstance(value, dict):
        raise refused("it is not made of JSON objects in base64url")
    return value
