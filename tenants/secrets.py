"""Random ids and secrets, and the keyed hash under which a secret is kept."""

import hashlib
import hmac
import secrets
import string

from tenants.types import KeyKind

_ALPHABET = string.ascii_letters + string.digits
_ID_CHARACTERS = 24
_SECRET_CHARACTERS = 48
"""log2(62) x 48 = 285 random bits."""
_PREFIXES = {KeyKind.ROOT: "sk-root-", KeyKind.ADMIN: "sk-admin-", KeyKind.PROJECT: "sk-"}


def new_id(prefix: str) -> str:
    """The prefix and 24 random alphanumerics (142 bits)."""
    return prefix + _random(_ID_CHARACTERS)


def new_secret(kind: KeyKind) -> str:
    """A secret with the kind's prefix."""
    return _PREFIXES[kind] + _random(_SECRET_CHARACTERS)


def redacted(kind: KeyKind, secret: str) -> str:
    """What may be shown of a secret: ``sk-AbCd...wXyZ``. 237 random bits remain unknown."""
    shown = len(_PREFIXES[kind]) + 4
    return f"{secret[:shown]}...{secret[-4:]}"


def looks_like_secret(text: str) -> bool:
    """Whether the text can be a secret of ours at all; anything else needs no look into the database."""
    longest = len(_PREFIXES[KeyKind.ADMIN]) + _SECRET_CHARACTERS
    return text.startswith("sk-") and len(text) <= longest and text.isascii()


def digest(pepper: bytes, secret: str) -> bytes:
    """HMAC-SHA256 of the secret under the pepper, 32 bytes."""
    return hmac.digest(pepper, secret.encode(), hashlib.sha256)


def _random(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))
