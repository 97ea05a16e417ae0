"""Who may issue tokens, for whom, and how a token of theirs is verified."""

from collections.abc import Iterable
from dataclasses import dataclass

from jwt import PyJWT
from jwt.exceptions import (
    InvalidAudienceError,
    InvalidSignatureError,
    MissingRequiredClaimError,
    PyJWTError,
)

from tenants.tokens.claims import Claims, check_times, claim, scopes_claim, text_claim
from tenants.tokens.envelope import Envelope, refused
from tenants.tokens.keys import KeySet, VerificationKey
from tenants.tokens.sources import KeySource

ANY_ORGANIZATION = "*"

_JWT = PyJWT({"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_sub": False})
"""Times are checked here, against the clock of the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """An issuer as it is configured.

    ``id`` is the operator's own name for it. ``organizations`` are the ids or slugs for which it may speak.
    The project is fixed, or named by a claim; the organization is the project's, and where a claim names
    one, it must be that. Claims are names or paths, as `claims.claim` has them.
    """

    id: str
    issuer: str
    audience: tuple[str, ...]
    algorithms: frozenset[str]
    keys: KeySource
    organizations: frozenset[str]
    project: str | None = None
    project_claim: str | None = None
    organization_claim: str | None = None
    user_claim: str = "sub"
    scope_claim: str = "scope"
    default_scopes: frozenset[str] = frozenset()
    leeway_s: float = 30.0

    def speaks_for(self, organization_id: str, slug: str) -> bool:
        """Whether the issuer's word counts for this organization."""
        return not self.organizations.isdisjoint((ANY_ORGANIZATION, organization_id, slug))

    async def verify(self, token: str, envelope: Envelope, now: float) -> "Statement":
        """What the issuer states; raises `InvalidCredential` and `IssuerUnavailable`.

        The algorithm must be one of the issuer's and the key's own.
        """
        algorithm = envelope.algorithm
        if algorithm not in self.algorithms:
            raise refused(f"the algorithm {algorithm[:32]!r} is not allowed for its issuer")
        for key in await self._candidates(envelope):
            claims = self._claims(token, key)
            if claims is not None:
                return self._statement(claims, check_times(claims, now, self.leeway_s))
        raise refused("no key of its issuer verifies its signature")

    async def _candidates(self, envelope: Envelope) -> list[VerificationKey]:
        current: KeySet = await self.keys.current()
        fitting = current.fitting(envelope.algorithm, envelope.kid)
        if not fitting:
            current = await self.keys.newer(current)
            fitting = current.fitting(envelope.algorithm, envelope.kid)
        return fitting

    def _claims(self, token: str, key: VerificationKey) -> Claims | None:
        """What is signed with the key, ``None`` where it was not that key."""
        try:
            signed: Claims = _JWT.decode(
                token,
                key.material,
                algorithms=[key.algorithm],
                audience=self.audience,
                issuer=self.issuer,
                options={"require": ["exp", "iss", "aud"]},
            )
        except InvalidSignatureError:
            return None
        except InvalidAudienceError as error:
            raise refused("it is for another audience") from error
        except MissingRequiredClaimError as error:
            raise refused(f"it has no {error.claim}") from error
        except PyJWTError as error:
            raise refused(str(error), "it is malformed") from error
        return signed

    def _statement(self, claims: Claims, expires_at: float) -> "Statement":
        organization = None
        if self.organization_claim is not None:
            organization = text_claim(claims, self.organization_claim)
        return Statement(
            expires_at=expires_at,
            organization=organization,
            project_id=self.project or text_claim(claims, self.project_claim or "project"),
            user_id=None if claim(claims, self.user_claim) is None else text_claim(claims, self.user_claim),
            scopes=scopes_claim(claims, self.scope_claim, self.default_scopes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a verified token states. Whether there is such a project, the database knows."""

    expires_at: float
    organization: str | None
    project_id: str
    user_id: str | None
    scopes: frozenset[str]


class Issuers:
    """The configured issuers by the text of ``iss``; raises ValueError where two are of the same text."""

    def __init__(self, issuers: Iterable[Issuer] = ()) -> None:
        self._issuers: dict[str, Issuer] = {}
        for issuer in issuers:
            if issuer.issuer in self._issuers:
                raise ValueError(f"there are two issuers {issuer.issuer!r}")
            self._issuers[issuer.issuer] = issuer

    def of(self, envelope: Envelope) -> Issuer:
        """Whom the token claims to be from; raises `InvalidCredential` where there is no such issuer."""
        issuer = self._issuers.get(envelope.issuer)
        if issuer is None:
            raise refused(f"its issuer {envelope.issuer[:64]!r} is not accepted here")
        return issuer
