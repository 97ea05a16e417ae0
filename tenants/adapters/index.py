"""Who may use which adapter, in memory: a request needs no database to find its model.

An adapter is looked up among those of the caller, never among all. The name of another tenant's adapter
therefore takes the same steps as one that does not exist.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tenants.types import ProjectPrincipal


@dataclass(frozen=True, slots=True)
class RegisteredAdapter:
    """An adapter of the registry.

    ``name`` is the model's public name, ``ft:{base}:{organization}:{suffix}:{id}``. ``user_id`` is set for
    one that is this user's of the project alone. ``digest`` names its content, ``size_bytes`` is what the
    content takes, ``canary`` is what an engine has answered when it was registered. ``created_at`` is in
    unix seconds.
    """

    id: str
    name: str
    organization_id: str
    project_id: str
    user_id: str | None
    base_model: str
    suffix: str
    digest: str
    rank: int
    size_bytes: int
    canary: bytes | None
    created_at: int


@dataclass(slots=True)
class Holding:
    """How many adapters a project has, and how many bytes they count for."""

    count: int = 0
    size_bytes: int = 0


_NONE: Mapping[str, RegisteredAdapter] = MappingProxyType({})
_Place = tuple[str, str | None]
"""A project, and a user of it, or None for all of them."""


@dataclass(slots=True)
class AdapterIndex:
    """Every adapter, by who may use it."""

    _places: dict[_Place, dict[str, RegisteredAdapter]] = field(default_factory=dict)
    _digests: Counter[str] = field(default_factory=Counter)
    _holdings: dict[str, Holding] = field(default_factory=dict)
    _grants: dict[str, set[str]] = field(default_factory=dict)
    _usable: dict[str, set[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self._digests.total()

    def find(self, principal: ProjectPrincipal, name: str) -> RegisteredAdapter | None:
        """The adapter of that name, where the principal may use it."""
        project_id = principal.project_id
        of_project = self._places.get((project_id, None), _NONE).get(name)
        of_user = self._places.get((project_id, _user_of(principal)), _NONE).get(name)
        return of_project or of_user

    def usable(self, project_id: str, name: str) -> bool:
        """Whether any user of the project may use the adapter of that name."""
        return name in self._usable.get(project_id, ())

    def visible(self, principal: ProjectPrincipal) -> Iterator[RegisteredAdapter]:
        """What the principal may use: the project's, the user's own, and what is shared with the project."""
        project_id, user_id = principal.project_id, _user_of(principal)
        yield from self._places.get((project_id, None), _NONE).values()
        if user_id is not None:
            yield from self._places.get((project_id, user_id), _NONE).values()

    def holding(self, project_id: str) -> Holding:
        """What the project has."""
        return self._holdings.get(project_id, Holding())

    def uses(self, digest: str) -> bool:
        """Whether an adapter has this content."""
        return self._digests[digest] > 0

    def digests(self) -> frozenset[str]:
        """The content of all adapters."""
        return frozenset(digest for digest, count in self._digests.items() if count > 0)

    def add(self, adapter: RegisteredAdapter) -> None:
        """Add an adapter."""
        self._put(adapter, adapter.project_id, adapter.user_id)
        self._digests[adapter.digest] += 1
        holding = self._holdings.setdefault(adapter.project_id, Holding())
        holding.count += 1
        holding.size_bytes += adapter.size_bytes

    def remove(self, adapter: RegisteredAdapter) -> None:
        """One less, for its owner and for all with whom it was shared."""
        for project_id in self._grants.pop(adapter.id, set()):
            self._take(adapter, project_id, None)
        self._take(adapter, adapter.project_id, adapter.user_id)
        self._digests[adapter.digest] -= 1
        if not self._digests[adapter.digest]:
            del self._digests[adapter.digest]
        holding = self._holdings[adapter.project_id]
        holding.count -= 1
        holding.size_bytes -= adapter.size_bytes

    def share(self, adapter: RegisteredAdapter, project_id: str) -> None:
        """From now on the other project may use it too."""
        self._grants.setdefault(adapter.id, set()).add(project_id)
        self._put(adapter, project_id, None)

    def unshare(self, adapter: RegisteredAdapter, project_id: str) -> None:
        """Revoke another project's permission to use the adapter."""
        self._grants.get(adapter.id, set()).discard(project_id)
        self._take(adapter, project_id, None)

    def _put(self, adapter: RegisteredAdapter, project_id: str, user_id: str | None) -> None:
        self._places.setdefault((project_id, user_id), {})[adapter.name] = adapter
        self._usable.setdefault(project_id, set()).add(adapter.name)

    def _take(self, adapter: RegisteredAdapter, project_id: str, user_id: str | None) -> None:
        """Remove empty scopes, so a project that comes and goes leaves nothing."""
        scope, usable = self._places[project_id, user_id], self._usable[project_id]
        scope.pop(adapter.name, None)
        usable.discard(adapter.name)
        if not scope:
            del self._places[project_id, user_id]
        if not usable:
            del self._usable[project_id]


def _user_of(principal: ProjectPrincipal) -> str | None:
    """The user whom a token names. A key stands for a program, not for a user."""
    return None if principal.issuer is None else principal.user_id
