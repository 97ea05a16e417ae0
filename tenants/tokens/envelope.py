"""The shape of a token, read before anything in it is believed."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tenants.errors import InvalidCredential

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
    """Raises `InvalidCredential` where the token is too large, no JWT, or wants more than it may."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise refused(f"longer than {MAX_TOKEN_CHARACTERS} characters")
    first, second, _ = token.split(".")
    header, payload = _object(first), _object(second)
    for name in _REFUSED_HEADERS:
        if name in header:
            raise refused(f"the header {name!r} is not allowed")
    algorithm, kid, issuer = header.get("alg"), header.get("kid"), payload.get("iss")
    if not isinstance(algorithm, str) or not isinstance(issuer, str):
        raise refused("no alg, or no iss")
    if kid is not None and (not isinstance(kid, str) or len(kid) > _MAX_KID_CHARACTERS):
        raise refused("the kid is no short string")
    return Envelope(algorithm, kid, issuer)


def refused(detail: str) -> InvalidCredential:
    """To whom it is told, a token that is refused is an unknown credential, whatever is wrong with it."""
    return InvalidCredential("unknown", detail)


def _object(segment: str) -> Mapping[str, Any]:
    try:
        decoded = base64.b64decode(segment.encode("ascii") + b"=" * (-len(segment) % 4), b"-_", True)
        value = msgspec.json.decode(decoded)
    except (ValueError, binascii.Error, RecursionError) as error:
        raise refused("not a JSON object in base64url") from error
    if not isinstance(value, dict):
        raise refused("not a JSON object in base64url")
    return value
