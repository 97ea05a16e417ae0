"""Keys that verify signatures: read from a JWKS, a PEM or a shared secret, each fit for one algorithm."""

from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWK
from jwt.exceptions import PyJWTError

ALGORITHMS = ("RS256", "ES256", "EdDSA", "HS256")
_MIN_RSA_BITS = 2048
_MIN_SECRET_BYTES = 32
"""RFC 7518, section 3.2: a key of the size of the hash output or larger."""
_MAX_KEYS = 32

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class InvalidKeys(ValueError):
    """The text holds no keys that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key and the one algorithm that it verifies: its type decides, never a token."""

    kid: str | None
    algorithm: str
    material: PublicKey | bytes


@dataclass(frozen=True, slots=True, eq=False)
class KeySet:
    """The keys of one issuer at one time."""

    keys: tuple[VerificationKey, ...]

    def fitting(self, algorithm: str, kid: str | None) -> list[VerificationKey]:
        """The keys of the algorithm; if both the token and a key have an id, only those with that id."""
        return [
            key
            for key in self.keys
            if key.algorithm == algorithm and (kid is None or key.kid is None or key.kid == kid)
        ]

    def algorithms(self) -> frozenset[str]:
        """The algorithms that the keys verify."""
        return frozenset(key.algorithm for key in self.keys)


def from_secret(secret: bytes) -> KeySet:
    """Make the key set of a shared secret. Raises `InvalidKeys` for a secret that is short or public."""
    if len(secret) < _MIN_SECRET_BYTES:
        raise InvalidKeys(f"the secret has {len(secret)} bytes; HS256 needs {_MIN_SECRET_BYTES} or more")
    if b"-----BEGIN" in secret:
        raise InvalidKeys("the secret is a PEM; give a public key as pem_file")
    return KeySet((VerificationKey(None, "HS256", secret),))


def from_pem(pem: bytes) -> KeySet:
    """A public key or a certificate; raises `InvalidKeys`."""
    if b"PRIVATE KEY" in pem:
        raise InvalidKeys("this is a private key; give the public key alone")
    try:
        key: object = (
            x509.load_pem_x509_certificate(pem).public_key()
            if b"BEGIN CERTIFICATE" in pem
            else serialization.load_pem_public_key(pem)
        )
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidKeys("no PEM of a public key or of a certificate") from error
    algorithm = _algorithm(key)
    if algorithm is None or not isinstance(key, PublicKey):
        raise InvalidKeys("the key is none of RSA with 2048 bits or more, EC P-256 and Ed25519")
    return KeySet((VerificationKey(None, algorithm, key),))


def from_jwks(text: bytes, *, secrets: bool = False) -> KeySet:
    """The keys of a JWK set (RFC 7517) that sign; what is of no use here is passed over.

    ``secrets``: whether symmetric keys are taken, which have no place where everybody can read them. Raises
    `InvalidKeys` where there is no usable key.
    """
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidKeys("no JSON") from error
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise InvalidKeys("no JWK set: it has no list of keys")
    keys = [key for entry in listed[:_MAX_KEYS] if (key := _from_jwk(entry, secrets)) is not None]
    if not keys:
        raise InvalidKeys("no key that verifies RS256, ES256, EdDSA or HS256")
    return KeySet(tuple(keys))


def _from_jwk(entry: Any, secrets: bool) -> VerificationKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    kid = entry.get("kid")
    if not isinstance(kid, str | None):
        return None
    try:
        material = PyJWK({name: value for name, value in entry.items() if name not in ("d", "alg")}).key
    except (PyJWTError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
        return None
    if isinstance(material, bytes):
        algorithm = "HS256" if secrets and len(material) >= _MIN_SECRET_BYTES else None
    else:
        algorithm = _algorithm(material)
    if algorithm is None or entry.get("alg", algorithm) not in (algorithm, _FULLY_SPECIFIED.get(algorithm)):
        return None
    return VerificationKey(kid, algorithm, material)


_FULLY_SPECIFIED = {"EdDSA": "Ed25519"}
"""RFC 9864 names the curve in ``alg``; a key that says so is of the same kind."""


def _algorithm(key: object) -> str | None:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        return "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "EdDSA"
    return None
