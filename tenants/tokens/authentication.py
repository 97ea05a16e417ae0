"""Whom a token stands for: verified, found in the database, and remembered until it expires."""

import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from tenants.accounts import keys
from tenants.accounts.change_log import ChangeLog
from tenants.accounts.credential_cache import CredentialCache
from tenants.accounts.keys import KnownKey
from tenants.scopes import grants
from tenants.storage import Storage
from tenants.tokens.envelope import MAX_TOKEN_CHARACTERS, Envelope, open_envelope, refused
from tenants.tokens.issuers import Issuers
from tenants.tokens.minting import ISSUER, Mint
from tenants.types import KeyKind, Principal, ProjectPrincipal

_Find = Callable[[Storage, str], Awaitable[KnownKey | None]]

MAX_KEPT_S = 300
"""A token that was verified so long ago is verified again."""

_NO_PROJECT = "the project that it names does not exist, or its issuer may not speak for it"
"""Told of another organization's project as of one that is not there."""


class TokenAuthentication:
    """Tokens of configured issuers, and those of this installation's own mint.

    ``known`` is the cache of the verified ones, by digest, ``subjects`` that of the projects and keys that
    tokens stand for: a new token for one of them needs no database. Times in tokens are those of
    ``clock``, in unix seconds; how long something is remembered is up to ``steady``, which is never set.
    """

    def __init__(
        self,
        storage: Storage,
        mint: Mint,
        issuers: Issuers,
        changes: ChangeLog,
        clock: Callable[[], float],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._mint = mint
        self._issuers = issuers
        self._clock = clock
        self._steady = steady
        self._tokens = CredentialCache(changes=changes, trusted=storage.trusted)
        self._subjects = CredentialCache(changes=changes, trusted=storage.trusted)

    def known(self, token: str) -> Principal | None:
        """The principal of a token that was verified a short time ago."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            return None
        key = self._tokens.known(_digest(token))
        if key is None or self._steady() >= key.kept_until:
            return None
        if key.expires_at is not None and self._clock() >= key.expires_at:
            return None
        return key.principal

    async def authenticate(self, token: str) -> Principal:
        """Verify a token and return its principal.

        Raises `InvalidCredential`, `IssuerUnavailable` and `StorageUnavailable`.
        """
        envelope, now, steady = open_envelope(token), self._clock(), self._steady()
        generation = self._tokens.generation
        if envelope.issuer == ISSUER:
            principal, until = await self._minted(token, envelope)
            kept_s: float = MAX_KEPT_S
        else:
            principal, until, lifetime_s = await self._issued(token, envelope)
            kept_s = min(MAX_KEPT_S, lifetime_s)
        until = min(until, now + kept_s)
        result = KnownKey(principal, int(until), None, kept_until=steady + kept_s)
        self._tokens.remember(_digest(token), result, generation)
        return principal

    async def _minted(self, token: str, envelope: Envelope) -> tuple[Principal, float]:
        minted = self._mint.verify(token, envelope)
        key = await self._key(minted.key_id)
        if key.expires_at is not None and self._clock() >= key.expires_at:
            raise refused("the key that minted it has expired")
        held = key.principal
        principal = replace(
            held,
            issuer=ISSUER,
            user_id=minted.user_id or held.user_id,
            scopes=frozenset(scope for scope in minted.scopes if grants(held.scopes, scope)),
            models=minted.models,
        )
        return principal, min(minted.expires_at, key.expires_at or minted.expires_at)

    async def _issued(self, token: str, envelope: Envelope) -> tuple[Principal, float, float]:
        issuer = self._issuers.of(envelope)
        statement = await issuer.verify(token, envelope, self._clock())
        project_key = await self._subject(statement.project_id, keys.find_project, _NO_PROJECT)
        project = project_key.principal
        named = statement.organization
        if named is not None and named not in (project.organization_id, project.organization):
            raise refused("the project is not of the organization that the token names", _NO_PROJECT)
        if not isinstance(project, ProjectPrincipal) or not issuer.speaks_for(
            project.organization_id, project.organization
        ):
            raise refused("the issuer may not speak for the project's organization", _NO_PROJECT)
        if statement.user_id in project_key.removed_users:
            raise refused("the user was removed from the organization")
        principal = replace(
            project,
            key_id=f"jwt_{issuer.id}",
            issuer=issuer.id,
            user_id=statement.user_id,
            scopes=statement.scopes,
        )
        return principal, statement.expires_at + issuer.leeway_s, issuer.keys.lifetime_s

    async def _key(self, key_id: str) -> KnownKey:
        minter = await self._subject(key_id, keys.find_by_id, "the key that minted it is no longer valid")
        if minter.principal.kind is not KeyKind.PROJECT:
            raise refused("only a project's key mints tokens")
        return minter

    async def _subject(self, subject: str, find: _Find, explanation: str) -> KnownKey:
        """The key or project, from memory where it is known; raises `InvalidCredential`."""
        digest = _digest(subject)
        cached = self._subjects.known(digest)
        if cached is not None:
            return cached
        reason = self._subjects.refusal(digest)
        if reason is None:
            generation = self._subjects.generation
            subject_key = await find(self._storage, subject)
            if subject_key is not None and subject_key.refusal is None:
                self._subjects.remember(digest, subject_key, generation)
                return subject_key
            reason = "unknown" if subject_key is None or subject_key.refusal is None else subject_key.refusal
            self._subjects.refuse(digest, reason)
        raise refused(f"what it speaks for is {reason}", explanation)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
