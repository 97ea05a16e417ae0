"""Authentication from memory: which digests are known good, and which are known to open nothing."""

import time
from collections import OrderedDict
from collections.abc import Callable

from tenants.errors import CredentialReason
from tenants.keys import KnownKey
from tenants.types import KeyKind, Principal

MAX_KNOWN = 50_000
MAX_REFUSED = 10_000
REFUSED_FOR_S = 10.0


class CredentialCache:
    """Bounded; the least recently used entry goes first. Keyed by digest, so that no secret is kept.

    ``generation`` changes with every eviction: what was read from the database before one must not be
    remembered after it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._known: OrderedDict[bytes, KnownKey] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[CredentialReason, float]] = OrderedDict()
        self._clock = clock
        self.generation = 0

    def known(self, digest: bytes) -> KnownKey | None:
        """The key with this digest, if it is remembered."""
        found = self._known.get(digest)
        if found is not None:
            self._known.move_to_end(digest)
        return found

    def refusal(self, digest: bytes) -> CredentialReason | None:
        """Why the digest was refused a short time ago."""
        found = self._refused.get(digest)
        if found is None:
            return None
        reason, until = found
        if self._clock() < until:
            return reason
        del self._refused[digest]
        return None

    def remember(self, digest: bytes, key: KnownKey, generation: int) -> None:
        """Remembers a good key that was read while ``generation`` held."""
        if generation != self.generation:
            return
        self._known[digest] = key
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def refuse(self, digest: bytes, reason: CredentialReason) -> None:
        """Remembers for a short time that the digest opens nothing."""
        self._refused[digest] = (reason, self._clock() + REFUSED_FOR_S)
        self._refused.move_to_end(digest)
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)

    def welcome(self, digest: bytes) -> None:
        """Forgets a refusal: there is such a key now."""
        self._refused.pop(digest, None)

    def forget_key(self, key_id: str) -> None:
        """Forgets one key."""
        self._forget(lambda principal: principal.key_id == key_id)

    def forget_project(self, project_id: str) -> None:
        """Forgets every key of a project."""
        self._forget(lambda principal: principal.project_id == project_id)

    def forget_kind(self, kind: KeyKind) -> None:
        """Forgets every key of a kind."""
        self._forget(lambda principal: principal.kind is kind)

    def _forget(self, which: Callable[[Principal], bool]) -> None:
        self.generation += 1
        for digest in [digest for digest, key in self._known.items() if which(key.principal)]:
            del self._known[digest]
