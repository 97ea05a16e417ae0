"""The one door to organizations, projects and keys."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.accounts import key_rotation, keys, organizations, projects
from tenants.accounts.change_log import EVERYTHING, ChangeLog
from tenants.accounts.credential_cache import CredentialCache
from tenants.accounts.key_rotation import Rotation
from tenants.accounts.last_uses import LastUses
from tenants.accounts.model_permissions import ModelPermissionStore
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
from tenants.types import ALL_SCOPES, ApiKey, KeyKind, Organization, Page, Principal, Project


class TenantStore:
    """Organizations, projects and keys in a database that the caller owns.

    ``pepper`` is the installation's secret: only HMAC-SHA256(pepper, secret) of a key is stored. Every
    method raises `StorageUnavailable` if the database fails; keys in memory go on working.
    Lists are in order of creation, ``after`` is the id of the last item that was seen. Every change is in
    the audit log, as the act of whom `tenants.audit.act_as` has named.

    When a key was last used is only written by a store that `open_tenants` has opened.

    ``changes`` is shared with other processes, whose revocations and archivals are seen by the next call.
    ``memory_s``: for how long keys in memory go on working while the database is away. ``issuers`` are those
    whose tokens are taken, besides those that `mint_token` makes.
    """

    def __init__(
        self,
        database: AsyncEngine,
        pepper: bytes,
        *,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        changes: ChangeLog | None = None,
        memory_s: float = 900.0,
        issuers: Iterable[Issuer] = (),
    ) -> None:
        self._storage = Storage(database, memory_s)
        self._pepper = pepper
        self._clock = clock
        changes = changes or ChangeLog()
        self._credentials = CredentialCache(changes=changes, trusted=self._storage.trusted)
        self._mint = Mint(pepper, clock)
        self._tokens = TokenAuthentication(
            self._storage, self._mint, Issuers(issuers), changes, clock, steady
        )
        self.last_uses = LastUses(self._storage, clock)
        self.audit = AuditLog(self._storage)
        self.users = Users(self._storage, forget=self._credentials.forget_organization)
        self.service_accounts = ServiceAccounts(
            self._storage,
            pepper,
            forget=self._credentials.forget_project,
            welcome=self._credentials.welcome,
        )
        self.model_permissions = ModelPermissionStore(self._storage, forget=self._credentials.forget_project)

    @property
    def storage(self) -> Storage:
        """The database, and when it has last answered."""
        return self._storage

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

        From memory where it is known. A revocation or archival through this store is seen by the next call,
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
            self.last_uses.note(principal.key_id, int(self._clock() * 1000))
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

    async def create_organization(self, slug: str, name: str | None = None) -> Organization:
        """Raises `Conflict` where the slug is taken. The name is the slug where it is not given."""
        return await organizations.create(self._storage, slug, name)

    async def create_organization_with_key(
        self, slug: str, name: str | None = None, *, key_name: str
    ) -> tuple[Organization, ApiKey, str]:
        """As `create_organization`, with an admin key and its secret in the same transaction."""
        organization, key_and_secret = await keys.create_with_organization(
            self._storage, self._pepper, slug, name, key_name
        )
        return organization, *self._made(key_and_secret)

    async def list_organizations(
        self, *, after: str | None = None, limit: int = 20, include_archived: bool = False
    ) -> Page[Organization]:
        """Organizations of the installation."""
        return await organizations.listed(self._storage, after, limit, include_archived)

    async def get_organization(self, id_or_slug: str) -> Organization:
        """Raises `NotFound`."""
        return await organizations.get(self._storage, id_or_slug)

    async def rename_organization(self, id_or_slug: str, name: str) -> Organization:
        """The slug stays. Raises `NotFound`, and `InvalidValue` where it is archived."""
        return await organizations.rename(self._storage, id_or_slug, name)

    async def archive_organization(self, id_or_slug: str) -> tuple[Organization, int]:
        """All its keys stop working at once; returns how many those were. Idempotent. Raises `NotFound`."""

        async def work() -> tuple[Organization, int]:
            organization = await organizations.get(self._storage, id_or_slug)
            try:
                return await organizations.archive(self._storage, organization.id)
            finally:
                self._credentials.forget_organization(organization.id)

        return await self._storage.to_the_end(work())

    async def create_project(self, organization_id: str, name: str) -> Project:
        """Names need not be unique. Raises `NotFound` where there is no such organization."""
        return await projects.create(self._storage, organization_id, name)

    async def list_projects(
        self,
        organization_id: str,
        *,
        after: str | None = None,
        limit: int = 20,
        include_archived: bool = False,
    ) -> Page[Project]:
        """Projects of one organization."""
        return await projects.listed(self._storage, organization_id, after, limit, include_archived)

    async def get_project(self, organization_id: str, project_id: str) -> Project:
        """Raises `NotFound`, for another organization's project as well."""
        return await projects.get(self._storage, organization_id, project_id)

    async def rename_project(self, organization_id: str, project_id: str, name: str) -> Project:
        """Raises `NotFound` as `get_project` does, and `InvalidValue` where it is archived."""
        return await projects.rename(self._storage, organization_id, project_id, name)

    async def archive_project(self, organization_id: str, project_id: str) -> Project:
        """Its keys stop working at once. Idempotent."""

        async def work() -> Project:
            try:
                return await projects.archive(self._storage, organization_id, project_id)
            finally:
                self._credentials.forget_project(project_id)

        return await self._storage.to_the_end(work())

    async def create_root_key(self) -> tuple[ApiKey, str]:
        """A further root key, and its secret."""
        return self._made(await keys.create_root(self._storage, self._pepper, alone=False))

    async def rotate_root_key(self) -> tuple[ApiKey, str]:
        """A new root key, and its secret; every earlier one is revoked in the same transaction."""

        async def work() -> tuple[ApiKey, str]:
            try:
                return self._made(await keys.create_root(self._storage, self._pepper, alone=True))
            finally:
                self._credentials.forget_kind(KeyKind.ROOT)

        return await self._storage.to_the_end(work())

    async def create_admin_key(
        self, organization_id: str, name: str, *, expires_at: int | None = None
    ) -> tuple[ApiKey, str]:
        """A key for the organization's administration, and its secret."""
        key_and_secret = await keys.create_admin(
            self._storage, self._pepper, organization_id, name, expires_at
        )
        return self._made(key_and_secret)

    async def create_project_key(
        self,
        organization_id: str,
        project_id: str,
        name: str,
        *,
        expires_at: int | None = None,
        scopes: frozenset[str] = ALL_SCOPES,
    ) -> tuple[ApiKey, str]:
        """A service account with a key for inference, and the secret. ``expires_at`` is in unix seconds."""
        _, key_and_secret = await self.service_accounts.create_with_key(
            organization_id, project_id, name, expires_at=expires_at, scopes=scopes
        )
        return key_and_secret

    async def list_keys(
        self,
        organization_id: str,
        *,
        project_id: str | None = None,
        kind: KeyKind = KeyKind.PROJECT,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = False,
    ) -> Page[ApiKey]:
        """Keys that are not revoked, of the organization or of one of its projects."""
        return await keys.listed(
            self._storage, organization_id, project_id, kind, after, limit, newest_first=newest_first
        )

    async def get_key(
        self,
        organization_id: str,
        key_id: str,
        *,
        project_id: str | None = None,
        kind: KeyKind | None = None,
    ) -> ApiKey:
        """Raises `NotFound`, for a revoked key, one of another kind, and another organization's as well."""
        return await keys.get(self._storage, organization_id, key_id, project_id, kind)

    async def revoke_key(
        self,
        organization_id: str,
        key_id: str,
        *,
        project_id: str | None = None,
        kind: KeyKind | None = None,
    ) -> ApiKey:
        """The key stops working at once. Raises `NotFound` as `get_key` does."""

        async def work() -> ApiKey:
            try:
                return await keys.revoke(self._storage, organization_id, key_id, project_id, kind)
            finally:
                self._credentials.forget_key(key_id)

        return await self._storage.to_the_end(work())

    async def change_key(
        self,
        organization_id: str,
        project_id: str,
        key_id: str,
        *,
        scopes: frozenset[str] | None = None,
        expires_at: int | None = None,
    ) -> ApiKey:
        """Other scopes or another expiry, for the next request; raises `NotFound` and `InvalidValue`."""

        async def work() -> ApiKey:
            try:
                return await key_rotation.change(
                    self._storage, organization_id, project_id, key_id, scopes=scopes, expires_at=expires_at
                )
            finally:
                self._credentials.forget_key(key_id)

        return await self._storage.to_the_end(work())

    async def rotate_key(self, organization_id: str, key_id: str, *, overlap_s: int) -> Rotation:
        """A new key, while the old one lives on for ``overlap_s`` seconds: as `key_changes.rotate`."""

        async def work() -> Rotation:
            try:
                rotation = await key_rotation.rotate(
                    self._storage, self._pepper, organization_id, key_id, overlap_s
                )
            finally:
                self._credentials.forget_key(key_id)
            self._made((rotation.key, rotation.secret))
            return rotation

        return await self._storage.to_the_end(work())

    def _made(self, result: tuple[ApiKey, str]) -> tuple[ApiKey, str]:
        self._credentials.welcome(digest(self._pepper, result[1]))
        return result


@asynccontextmanager
async def open_tenants(
    database: AsyncEngine,
    pepper: bytes,
    *,
    changes: Path | None = None,
    memory_s: float = 900.0,
    issuers: Iterable[Issuer] = (),
) -> AsyncIterator[TenantStore]:
    """A store that also writes when keys were last used; on leaving, what is noted has been written.

    ``changes`` is the file that processes share which work with one database. It watches the database, so
    that ``memory_s`` counts from when it has really gone away.
    """
    log = ChangeLog(changes)
    # A process that ended between a commit and its announcement has announced nothing.
    log.publish(EVERYTHING)
    store = TenantStore(database, pepper, changes=log, memory_s=memory_s, issuers=issuers)
    writing = asyncio.create_task(store.last_uses.run())
    watching = asyncio.create_task(watch(store.storage))
    try:
        yield store
    finally:
        watching.cancel()
        store.last_uses.close()
        await asyncio.wait({watching, writing})
        log.close()
        writing.result()
