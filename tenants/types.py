"""What a tenant is: organizations, projects, keys, and the principal behind a key.

Every time is in whole unix seconds.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")

ALL_SCOPES = frozenset({"all"})


class KeyKind(StrEnum):
    """What a key opens: the host, one organization's administration, or one project's inference."""

    ROOT = "root"
    ADMIN = "admin"
    PROJECT = "project"


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant. ``id`` is ``org-...``, ``slug`` is unique in the installation."""

    id: str
    slug: str
    name: str
    created_at: int
    archived_at: int | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """A part of an organization, with keys of its own. ``id`` is ``proj_...``.

    ``status`` is ``active`` or ``archived``. Names need not be unique.
    """

    id: str
    organization_id: str
    name: str
    status: str
    created_at: int
    archived_at: int | None


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A program that has keys of a project. ``id`` is ``svc_...``, ``role`` owner, member or none.

    What a key opens is said by its scopes; the role is for people to read.
    """

    id: str
    project_id: str
    name: str
    role: str
    created_at: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key; the secret itself is not. ``id`` is ``key_...``, ``prefix`` is for display.

    Keys of a project have a ``service_account``.
    """

    id: str
    kind: KeyKind
    organization_id: str | None
    project_id: str | None
    name: str
    prefix: str
    owner_user_id: str | None
    scopes: frozenset[str]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None
    service_account: ServiceAccount | None = None


class PermissionMode(StrEnum):
    """Whether the models that are named are the only ones, or all but those."""

    ALLOW = "allow_list"
    DENY = "deny_list"


@dataclass(frozen=True, slots=True)
class ModelPermissions:
    """Which models a project may use."""

    mode: PermissionMode
    models: frozenset[str]

    def permit(self, model: str, base: str | None = None) -> bool:
        """Whether the project may use the model. An adapter is named by its own name or by its ``base``."""
        named = model in self.models or base in self.models
        return named == (self.mode is PermissionMode.ALLOW)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request. ``organization`` is the organization's slug.

    ``issuer`` is None for a key, else the issuer of the token; ``key_id`` is then ``jwt_{issuer}``, or the
    key that minted the token. ``models`` names the only models that the credential may use, ``permissions``
    holds for its whole project.
    """

    kind: KeyKind
    key_id: str
    organization_id: str | None
    organization: str | None
    project_id: str | None
    user_id: str | None
    scopes: frozenset[str]
    issuer: str | None = None
    models: frozenset[str] | None = None
    permissions: ModelPermissions | None = None

    def may_use(self, model: str, base: str | None = None) -> bool:
        """Whether the principal may use the model.

        An adapter, on the ``base`` model, follows the project's permission for either; a credential that is
        for certain models alone must name it.
        """
        if self.permissions is not None and not self.permissions.permit(model, base):
            return False
        return self.models is None or model in self.models


@dataclass(frozen=True, slots=True)
class OrganizationPrincipal(Principal):
    """A principal of an organization: an admin key, or the key or token of a project."""

    organization_id: str
    organization: str


@dataclass(frozen=True, slots=True)
class ProjectPrincipal(OrganizationPrincipal):
    """A principal of a project: its key, or a token that speaks for it."""

    project_id: str


PRINCIPALS: dict[KeyKind, type[Principal]] = {
    KeyKind.ROOT: Principal,
    KeyKind.ADMIN: OrganizationPrincipal,
    KeyKind.PROJECT: ProjectPrincipal,
}
"""The class of a key's principal."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list in order of creation, and whether there is more after it."""

    items: list[T]
    has_more: bool
