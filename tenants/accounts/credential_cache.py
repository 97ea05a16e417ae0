"""Authentication from memory: which digests are known good, and which are known to open nothing."""

import time
from collections import OrderedDict
from collections.abc import Callable

from tenants.accounts.change_log import EVERYTHING, ChangeLog
from tenants.accounts.keys import KnownKey
from tenants.errors import CredentialReason
from tenants.types import KeyKind

MAX_KEYS = 50_000
MAX_REFUSED = 10_000
REFUSED_FOR_S = 10.0


class CredentialCache:
    """Verified and refused keys, bounded; the least recently used goes first. Keyed by digest: no secret is
    kept.

    ``generation`` changes with every eviction: what was read from the database before one must not be
    remembered after it. ``changes`` tells of evictions in other processes, which happen before the next
    look into the cache. While what is remembered is not ``trusted``, nothing counts as known.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        changes: ChangeLog | None = None,
        trusted: Callable[[], bool] = lambda: True,
        *,
        max_keys: int = MAX_KEYS,
        max_refused: int = MAX_REFUSED,
    ) -> None:
        self._keys: OrderedDict[bytes, KnownKey] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[CredentialReason, float]] = OrderedDict()
        self._max_keys, self._max_refused = max_keys, max_refused
        self._clock = clock
        self._trusted = trusted
        self._changes = changes or ChangeLog()
        self._seen = self._changes.count
        self.generation = 0

    def known(self, digest: bytes) -> KnownKey | None:
        """The key with this digest, if it is remembered."""
        if self._changes.count != self._seen:
            self._catch_up()
        key = self._keys.get(digest)
        if key is None or not self._trusted():
            return None
        self._keys.move_to_end(digest)
        return key

    def refusal(self, digest: bytes) -> CredentialReason | None:
        """Why the digest was refused a short time ago."""
        refusal = self._refused.get(digest)
        if refusal is None:
            return None
        reason, until = refusal
        if self._clock() < until:
            return reason
        del self._refused[digest]
        return None

    def remember(self, digest: bytes, key: KnownKey, generation: int) -> None:
        """Remembers a good key that was read while ``generation`` held."""
        if self._changes.count != self._seen:
            self._catch_up()
        if generation != self.generation:
            return
        self._keys[digest] = key
        while len(self._keys) > self._max_keys:
            self._keys.popitem(last=False)

    def refuse(self, digest: bytes, reason: CredentialReason) -> None:
        """Remembers for a short time that the digest opens nothing."""
        self._refused[digest] = (reason, self._clock() + REFUSED_FOR_S)
        self._refused.move_to_end(digest)
        while len(self._refused) > self._max_refused:
            self._refused.popitem(last=False)

    def welcome(self, digest: bytes) -> None:
        """Forgets a refusal: there is such a key now."""
        self._refused.pop(digest, None)

    def forget_key(self, key_id: str) -> None:
        """Forgets one key, here and in every other process."""
        self._forget(key_id)

    def forget_project(self, project_id: str) -> None:
        """Forgets every key of a project, here and in every other process."""
        self._forget(project_id)

    def forget_organization(self, organization_id: str) -> None:
        """Forgets every key of an organization, here and in every other process."""
        self._forget(organization_id)

    def forget_kind(self, kind: KeyKind) -> None:
        """Forgets every key of a kind, here and in every other process."""
        self._forget(kind)

    def _forget(self, subject: str) -> None:
        self._changes.publish(subject)
        self._catch_up()

    def _catch_up(self) -> None:
        """Forgets what the changes name that this cache has not seen yet."""
        self.generation += 1
        self._seen, subjects = self._changes.since(self._seen)
        if EVERYTHING in subjects:
            self._keys.clear()
            self._refused.clear()
            return
        for digest in [digest for digest, key in self._keys.items() if key.subjects() & subjects]:
            del self._keys[digest]
