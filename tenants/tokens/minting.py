"""Short-lived tokens that a project key mints for a browser, good in this installation alone."""

from collections.abc import Callable
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt.exceptions import PyJWTError

from tenants.errors import InvalidValue
from tenants.scopes import SCOPES, grants
from tenants.tokens.claims import Claims, check_times, scopes_claim, text_claim
from tenants.tokens.envelope import Envelope, refused

ISSUER = "torpor"
MAX_LIFETIME_S = 24 * 3600
MAX_MODELS = 32
_MAX_USER = 256
_ALGORITHM = "HS256"
_NOT_OURS = "it is not a token of this installation"
_PURPOSE = b"torpor minted tokens 1"


@dataclass(frozen=True, slots=True)
class MintedToken:
    """What a token of this installation states. Whether its key still opens anything, the database knows."""

    key_id: str
    user_id: str | None
    scopes: frozenset[str]
    models: frozenset[str] | None
    expires_at: float


class Mint:
    """Signs with a key that is derived from the installation's secret (HKDF, RFC 5869)."""

    def __init__(self, pepper: bytes, clock: Callable[[], float]) -> None:
        self._key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(pepper)
        self._clock = clock

    def mint(
        self,
        key_id: str,
        *,
        held: frozenset[str],
        user_id: str | None,
        scopes: frozenset[str],
        models: frozenset[str] | None,
        expires_in_s: int,
    ) -> tuple[str, int]:
        """The token and when it expires, in unix seconds.

        ``held`` are the scopes of the key, which must include all of ``scopes``. Raises `InvalidValue`.
        """
        if not scopes or not scopes <= SCOPES or not all(grants(held, scope) for scope in scopes):
            raise InvalidValue("scopes", "'scopes' must be scopes that the key itself has, at least one.")
        if user_id is not None and not (0 < len(user_id) <= _MAX_USER and user_id.isprintable()):
            raise InvalidValue("user", f"'user' must be printable text of 1 to {_MAX_USER} characters.")
        if models is not None and not 0 < len(models) <= MAX_MODELS:
            raise InvalidValue("models", f"'models' must name 1 to {MAX_MODELS} models.")
        if not 0 < expires_in_s <= MAX_LIFETIME_S:
            raise InvalidValue(
                "expires_in_seconds", f"'expires_in_seconds' must be between 1 and {MAX_LIFETIME_S}."
            )
        now = int(self._clock())
        claims: dict[str, object] = {
            "iss": ISSUER,
            "aud": ISSUER,
            "iat": now,
            "exp": now + expires_in_s,
            "key": key_id,
            "scope": " ".join(sorted(scopes)),
        }
        if user_id is not None:
            claims["sub"] = user_id
        if models is not None:
            claims["models"] = sorted(models)
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM), now + expires_in_s

    def verify(self, token: str, envelope: Envelope) -> MintedToken:
        """Verify a token that Torpor has minted. Raises `InvalidCredential`."""
        if envelope.algorithm != _ALGORITHM:
            raise refused("its algorithm is not HS256")
        try:
            claims: Claims = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                audience=ISSUER,
                issuer=ISSUER,
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except PyJWTError as error:
            raise refused(f"no token of this installation: {error}", _NOT_OURS) from error
        models = claims.get("models")
        return MintedToken(
            key_id=text_claim(claims, "key"),
            user_id=text_claim(claims, "sub") if "sub" in claims else None,
            scopes=scopes_claim(claims, "scope", frozenset()),
            models=None if models is None else frozenset(models),
            expires_at=check_times(claims, self._clock(), 0.0),
        )
