"""Random ids and secrets, and the keyed hash under which a secret is kept."""

import hashlib
import secrets
import string
from functools import lru_cache

from tenants.types import KeyKind

_ALPHABET = string.ascii_letters + string.digits
_ID_CHARACTERS = 24
_SECRET_CHARACTERS = 48
"""log2(62) x 48 = 285 random bits."""
_BLOCK = 64
"""Bytes that SHA-256 takes at once."""
_PREFIXES = {KeyKind.ROOT: "sk-root-", KeyKind.ADMIN: "sk-admin-", KeyKind.PROJECT: "sk-"}


def new_id(prefix: str) -> str:
    """The prefix and 24 random alphanumerics (142 bits)."""
    return prefix + _random(_ID_CHARACTERS)


def new_secret(kind: KeyKind) -> str:
    """A secret with the kind's prefix."""
    return _PREFIXES[kind] + _random(_SECRET_CHARACTERS)


def redacted(kind: KeyKind, secret: str) -> str:
    """What may be shown of a secret: ``sk-AbCd...wXyZ``. 237 random bits remain unknown."""
    visible = len(_PREFIXES[kind]) + 4
    return f"{secret[:visible]}...{secret[-4:]}"


def looks_like_secret(text: str) -> bool:
    """Whether the text can be a secret of ours at all; anything else needs no look into the database."""
    longest = len(_PREFIXES[KeyKind.ADMIN]) + _SECRET_CHARACTERS
    return text.startswith("sk-") and len(text) <= longest and text.isascii()


def digest(pepper: bytes, secret: str) -> bytes:
    """HMAC-SHA256 of the secret under the pepper, 32 bytes."""
    inner, outer = (begun.copy() for begun in _keyed(pepper))
    inner.update(secret.encode())
    outer.update(inner.digest())
    return outer.digest()


@lru_cache(maxsize=8)
def _keyed(pepper: bytes) -> "tuple[hashlib._Hash, hashlib._Hash]":
    """RFC 2104's inner and outer hash, begun.

    ``hmac`` lets go of the interpreter's lock for each digest, which costs ten times as much as the digest
    where other threads wait for it.
    """
    key = pepper if len(pepper) <= _BLOCK else hashlib.sha256(pepper).digest()
    inner, outer = (bytes(byte ^ pad for byte in key.ljust(_BLOCK, b"\0")) for pad in (0x36, 0x5C))
    return hashlib.sha256(inner), hashlib.sha256(outer)


def _random(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))
