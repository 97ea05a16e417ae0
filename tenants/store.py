"""The stores of tenants: the entrance to organizations, projects, keys and users from other folders."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.accounts import keys
from tenants.accounts.change_log import EVERYTHING, ChangeLog
from tenants.accounts.credential_cache import CredentialCache
from tenants.accounts.key_store import Keys
from tenants.accounts.last_uses import WRITE_EVERY_S, LastUses
from tenants.accounts.model_permissions import ModelPermissionStore
from tenants.accounts.organizations import Organizations
from tenants.accounts.projects import Projects
from tenants.accounts.service_accounts import ServiceAccounts
from tenants.accounts.users import Users
from tenants.audit import AuditLog
from tenants.errors import InvalidCredential
from tenants.health import watch
from tenants.secrets import digest, looks_like_secret
from tenants.storage import Storage
from tenants.tokens.authentication import TokenAuthentication
from tenants.tokens.envelope import looks_like_token
from tenants.tokens.issuers import Issuer, Issuers
from tenants.tokens.minting import ISSUER, Mint
from tenants.types import Principal


class Credentials:
    """Finds whom a key or a token stands for, from memory if it is known.

    ``pepper`` is the installation's secret: only HMAC-SHA256(pepper, secret) of a key is stored. Keys in
    memory go on working while the database is away, for as long as the storage allows.
    """

    def __init__(
        self,
        storage: Storage,
        pepper: bytes,
        cache: CredentialCache,
        tokens: TokenAuthentication,
        mint: Mint,
        last_uses: LastUses,
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._pepper = pepper
        self._credentials = cache
        self._tokens = tokens
        self._mint = mint
        self._last_uses = last_uses
        self._clock = clock

    def known(self, secret: str) -> Principal | None:
        """As `authenticate`, from memory alone; ``None`` where that does not suffice."""
        if looks_like_token(secret):
            principal = self._tokens.known(secret)
        elif looks_like_secret(secret):
            key = self._credentials.known(digest(self._pepper, secret))
            usable = key is not None and (key.expires_at is None or self._clock() < key.expires_at)
            principal = key.principal if key is not None and usable else None
        else:
            principal = None
        return None if principal is None else self._noted(principal)

    async def authenticate(self, secret: str) -> Principal:
        """Whom the key or the token stands for; raises `InvalidCredential`, or `IssuerUnavailable`.

        From memory where it is known. A revocation or archival through these stores is seen by the next call,
        an expiry by the first call at its second.
        """
        if not secret:
            raise InvalidCredential("missing")
        if looks_like_token(secret):
            return self._noted(self._tokens.known(secret) or await self._tokens.authenticate(secret))
        if not looks_like_secret(secret):
            raise InvalidCredential("unknown")
        key_digest = digest(self._pepper, secret)
        cached = self._credentials.known(key_digest)
        if cached is None:
            cached = await self._look_up(key_digest)
        if cached.expires_at is not None and self._clock() >= cached.expires_at:
            raise InvalidCredential("expired")
        return self._noted(cached.principal)

    def _noted(self, principal: Principal) -> Principal:
        if principal.issuer in (None, ISSUER):
            self._last_uses.note(principal.key_id, int(self._clock() * 1000))
        return principal

    async def _look_up(self, key_digest: bytes) -> keys.KnownKey:
        reason = self._credentials.refusal(key_digest)
        if reason is not None:
            raise InvalidCredential(reason)
        generation = self._credentials.generation
        key = await keys.find(self._storage, key_digest)
        if key is None or key.refusal is not None:
            reason = "unknown" if key is None or key.refusal is None else key.refusal
            self._credentials.refuse(key_digest, reason)
            raise InvalidCredential(reason)
        self._credentials.remember(key_digest, key, generation)
        return key

    def mint_token(
        self,
        principal: Principal,
        *,
        user_id: str | None,
        scopes: frozenset[str],
        models: frozenset[str] | None,
        expires_in_s: int,
    ) -> tuple[str, int]:
        """A token that stands for the principal's key, and when it expires, in unix seconds.

        It opens what both its scopes and those of the key open, and dies with the key. Raises `InvalidValue`.
        """
        return self._mint.mint(
            principal.key_id,
            held=principal.scopes,
            user_id=user_id,
            scopes=scopes,
            models=models,
            expires_in_s=expires_in_s,
        )


@dataclass(frozen=True, slots=True)
class Tenants:
    """The stores of tenants in one database, and the check of their credentials.

    Every method of a store raises `StorageUnavailable` if the database fails. Every change is in the audit
    log, as the act of whom `tenants.audit.act_as` has named.
    """

    storage: Storage
    credentials: Credentials
    organizations: Organizations
    projects: Projects
    keys: Keys
    users: Users
    service_accounts: ServiceAccounts
    model_permissions: ModelPermissionStore
    last_uses: LastUses
    audit: AuditLog

    @classmethod
    def of(
        cls,
        database: AsyncEngine,
        pepper: bytes,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        changes: ChangeLog | None = None,
        memory_s: float = 900.0,
        issuers: Iterable[Issuer] = (),
        uses_every_s: float = WRITE_EVERY_S,
    ) -> Self:
        """The stores of a database that the caller owns.

        ``changes`` is shared with other processes, whose revocations and archivals are seen by the next call.
        ``memory_s``: how long cached keys go on working while the database is away. ``issuers``: those whose
        tokens are accepted, besides Torpor's own. When a key was last used is only written by the stores that
        `open_tenants` has opened.
        """
        storage = Storage(database, memory_s)
        changes = changes or ChangeLog()
        cache = CredentialCache(changes=changes, trusted=storage.trusted)
        mint = Mint(pepper, clock)
        tokens = TokenAuthentication(storage, mint, Issuers(issuers), changes, clock, steady)
        last_uses = LastUses(storage, clock, write_every_s=uses_every_s)
        service_accounts = ServiceAccounts(
            storage, pepper, forget=cache.forget_project, welcome=cache.welcome
        )
        return cls(
            storage=storage,
            credentials=Credentials(storage, pepper, cache, tokens, mint, last_uses, clock),
            organizations=Organizations(storage, forget=cache.forget_organization),
            projects=Projects(storage, forget=cache.forget_project),
            keys=Keys(storage, pepper, cache, service_accounts),
            users=Users(storage, forget=cache.forget_organization),
            service_accounts=service_accounts,
            model_permissions=ModelPermissionStore(storage, forget=cache.forget_project),
            last_uses=last_uses,
            audit=AuditLog(storage),
        )


@asynccontextmanager
async def open_tenants(
    database: AsyncEngine,
    pepper: bytes,
    *,
    changes: Path | None = None,
    memory_s: float = 900.0,
    issuers: Iterable[Issuer] = (),
    uses_every_s: float = WRITE_EVERY_S,
) -> AsyncIterator[Tenants]:
    """The stores, which also write when keys were last used; all uses are written when the context is left.

    ``changes`` is the file that processes share which work with one database. It watches the database:
    ``memory_s`` counts from when the database has really gone away.
    """
    log = ChangeLog(changes)
    # A process that ended between a commit and its announcement has announced nothing.
    log.publish(EVERYTHING)
    tenants = Tenants.of(
        database, pepper, changes=log, memory_s=memory_s, issuers=issuers, uses_every_s=uses_every_s
    )
    writing = asyncio.create_task(tenants.last_uses.run())
    watching = asyncio.create_task(watch(tenants.storage))
    try:
        yield tenants
    finally:
        watching.cancel()
        tenants.last_uses.close()
        await asyncio.wait({watching, writing})
        log.close()
        writing.result()
