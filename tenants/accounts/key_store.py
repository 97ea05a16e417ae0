"""The API keys of an installation: made, listed, changed, rotated, revoked."""

from collections.abc import Awaitable
from typing import TypeVar

from tenants.accounts import key_rotation, keys
from tenants.accounts.credential_cache import CredentialCache
from tenants.accounts.key_rotation import Rotation
from tenants.accounts.service_accounts import ServiceAccounts
from tenants.secrets import digest
from tenants.storage import Storage
from tenants.types import ALL_SCOPES, ApiKey, KeyKind, Organization, Page

T = TypeVar("T")


class Keys:
    """Keys in the database, and what is cached of them.

    Lists are in order of creation; ``after`` is the id of the last item that was seen. Methods raise
    `StorageUnavailable`, and `NotFound` for a revoked key, one of another kind, or another organization's.
    """

    def __init__(
        self,
        storage: Storage,
        pepper: bytes,
        credentials: CredentialCache,
        service_accounts: ServiceAccounts,
    ) -> None:
        self._storage = storage
        self._pepper = pepper
        self._credentials = credentials
        self._service_accounts = service_accounts

    async def create_root(self) -> tuple[ApiKey, str]:
        """Create another root key; returns it and its secret."""
        return self._welcomed(await keys.create_root(self._storage, self._pepper, alone=False))

    async def rotate_root(self) -> tuple[ApiKey, str]:
        """Create a root key, and revoke every earlier one with it; returns it and its secret."""

        async def work() -> tuple[ApiKey, str]:
            try:
                return self._welcomed(await keys.create_root(self._storage, self._pepper, alone=True))
            finally:
                self._credentials.forget_kind(KeyKind.ROOT)

        return await self._storage.to_the_end(work())

    async def create_admin(
        self, organization_id: str, name: str, *, expires_at: int | None = None
    ) -> tuple[ApiKey, str]:
        """Create a key for the organization's administration; returns it and its secret."""
        return self._welcomed(
            await keys.create_admin(self._storage, self._pepper, organization_id, name, expires_at)
        )

    async def create_for_project(
        self,
        organization_id: str,
        project_id: str,
        name: str,
        *,
        expires_at: int | None = None,
        scopes: frozenset[str] = ALL_SCOPES,
    ) -> tuple[ApiKey, str]:
        """Create a service account with a key for inference; returns the key and its secret."""
        _, key_and_secret = await self._service_accounts.create_with_key(
            organization_id, project_id, name, expires_at=expires_at, scopes=scopes
        )
        return key_and_secret

    async def create_with_organization(
        self, slug: str, name: str | None = None, *, key_name: str
    ) -> tuple[Organization, ApiKey, str]:
        """Create an organization, with an admin key and its secret, in one transaction."""
        organization, key_and_secret = await keys.create_with_organization(
            self._storage, self._pepper, slug, name, key_name
        )
        return organization, *self._welcomed(key_and_secret)

    async def listed(
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

    async def get(
        self,
        organization_id: str,
        key_id: str,
        *,
        project_id: str | None = None,
        kind: KeyKind | None = None,
    ) -> ApiKey:
        """The key with this id."""
        return await keys.get(self._storage, organization_id, key_id, project_id, kind)

    async def revoke(
        self,
        organization_id: str,
        key_id: str,
        *,
        project_id: str | None = None,
        kind: KeyKind | None = None,
    ) -> ApiKey:
        """Revoke a key; it stops working at once."""
        work = keys.revoke(self._storage, organization_id, key_id, project_id, kind)
        return await self._changing(key_id, work)

    async def change(
        self,
        organization_id: str,
        project_id: str,
        key_id: str,
        *,
        scopes: frozenset[str] | None = None,
        expires_at: int | None = None,
    ) -> ApiKey:
        """Give a key other scopes or another expiry, from the next request on. Raises `InvalidValue`."""
        work = key_rotation.change(
            self._storage, organization_id, project_id, key_id, scopes=scopes, expires_at=expires_at
        )
        return await self._changing(key_id, work)

    async def rotate(self, organization_id: str, key_id: str, *, overlap_s: int) -> Rotation:
        """Create a key in the place of an old one, which goes on working for ``overlap_s`` seconds."""
        work = key_rotation.rotate(self._storage, self._pepper, organization_id, key_id, overlap_s)
        rotation = await self._changing(key_id, work)
        self._welcomed((rotation.key, rotation.secret))
        return rotation

    async def _changing(self, key_id: str, work: Awaitable[T]) -> T:
        """Await the work to its end, and forget what is cached of the key."""

        async def to_the_end() -> T:
            try:
                return await work
            finally:
                self._credentials.forget_key(key_id)

        return await self._storage.to_the_end(to_the_end())

    def _welcomed(self, key_and_secret: tuple[ApiKey, str]) -> tuple[ApiKey, str]:
        self._credentials.welcome(digest(self._pepper, key_and_secret[1]))
        return key_and_secret
