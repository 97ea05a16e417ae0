"""Organizations, projects and keys as an administrator sees them."""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.errors import Conflict, InvalidValue, NotFound, StorageUnavailable
from tenants.store import Tenants
from tenants.types import KeyKind, Organization, Page, Project
from tests.tenants.conftest import PEPPER


@pytest.fixture
async def organization(store: Tenants) -> Organization:
    return await store.organizations.create("acme", "Acme Ltd")


@pytest.fixture
async def project(store: Tenants, organization: Organization) -> Project:
    return await store.projects.create(organization.id, "search")


async def test_organization_is_found_by_id_and_by_slug(store: Tenants) -> None:
    created = await store.organizations.create("acme")
    assert re.fullmatch("org-[A-Za-z0-9]{24}", created.id)
    assert created.name == "acme"
    assert await store.organizations.get(created.id) == created
    assert await store.organizations.get("acme") == created
    with pytest.raises(NotFound):
        await store.organizations.get("other")


async def test_slug_is_unique(store: Tenants, organization: Organization) -> None:
    with pytest.raises(Conflict, match="acme"):
        await store.organizations.create("acme")
    assert (await store.organizations.listed()).items == [organization]


async def test_an_organization_comes_with_its_key_or_not_at_all(
    store: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_secret(_kind: KeyKind) -> str:
        raise OSError("no randomness")

    with monkeypatch.context() as broken:
        broken.setattr("tenants.accounts.keys.new_secret", no_secret)
        with pytest.raises(StorageUnavailable):
            await store.keys.create_with_organization("acme", key_name="first")
    assert (await store.organizations.listed()).items == []
    organization, key, secret = await store.keys.create_with_organization("acme", key_name="first")
    assert (await store.credentials.authenticate(secret)).organization_id == organization.id
    assert (await store.keys.listed(organization.id, kind=KeyKind.ADMIN)).items == [key]
    with pytest.raises(Conflict, match="acme"):
        await store.keys.create_with_organization("acme", key_name="second")
    assert (await store.keys.listed(organization.id, kind=KeyKind.ADMIN)).items == [key]


@pytest.mark.parametrize("slug", ["", "a b", "ü", "a" * 65, "a/b", "a\n"])
async def test_bad_slug_is_named(store: Tenants, slug: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        await store.organizations.create(slug, "fine")
    assert caught.value.param == "slug"


@pytest.mark.parametrize("name", ["", "  ", "x" * 257, "nul\0", "\ud800"])
async def test_bad_name_is_named(store: Tenants, organization: Organization, name: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        await store.projects.create(organization.id, name)
    assert caught.value.param == "name"


async def test_projects_may_share_a_name(store: Tenants, organization: Organization) -> None:
    item = await store.projects.create(organization.id, "same")
    other = await store.projects.create(organization.id, "same")
    assert item.id != other.id
    assert await store.projects.get(organization.id, item.id) == item


async def test_another_organizations_things_do_not_exist(
    store: Tenants, organization: Organization, project: Project
) -> None:
    other = await store.organizations.create("other")
    key, _ = await store.keys.create_for_project(organization.id, project.id, "key")
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: store.projects.get(other.id, project.id),
        lambda: store.projects.archive(other.id, project.id),
        lambda: store.keys.create_for_project(other.id, project.id, "key"),
        lambda: store.keys.get(other.id, key.id),
        lambda: store.keys.revoke(other.id, key.id),
        lambda: store.projects.create("org-unknown", "x"),
        lambda: store.keys.create_admin("org-unknown", "x"),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound):
            await attempt()
    assert (await store.keys.listed(other.id)).items == []
    assert (await store.projects.listed(other.id)).items == []
    assert await store.keys.get(organization.id, key.id) == key


async def test_archiving_keeps_the_first_time_and_hides_from_lists(
    store: Tenants, organization: Organization, project: Project
) -> None:
    archived = await store.projects.archive(organization.id, project.id)
    assert archived.status == "archived"
    assert await store.projects.archive(organization.id, project.id) == archived
    assert (await store.projects.listed(organization.id)).items == []
    assert (await store.projects.listed(organization.id, include_archived=True)).items == [archived]
    with pytest.raises(InvalidValue) as caught:
        await store.keys.create_for_project(organization.id, project.id, "late")
    assert caught.value.param == "project_id"


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"expires_at": 1}, "expires_at"),
        ({"expires_at": 10**18}, "expires_at"),
        ({"scopes": frozenset()}, "scopes"),
        ({"scopes": frozenset({"two words"})}, "scopes"),
        ({"name": ""}, "name"),
    ],
)
async def test_bad_values_of_a_key_are_named(
    store: Tenants, project: Project, values: dict[str, object], param: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        await store.keys.create_for_project(
            project.organization_id,
            project.id,
            **{"name": "key", **values},  # type: ignore[arg-type]
        )
    assert caught.value.param == param
    assert (await store.keys.listed(project.organization_id)).items == []


async def test_key_is_kept_as_a_keyed_hash_only(
    store: Tenants, project: Project, database: AsyncEngine, tmp_path: Path
) -> None:
    key, secret = await store.keys.create_for_project(
        project.organization_id, project.id, "key", scopes=frozenset({"model.read", "model.request"})
    )
    assert re.fullmatch("sk-[A-Za-z0-9]{48}", secret)
    assert key.prefix == f"{secret[:7]}...{secret[-4:]}"
    assert await store.keys.get(project.organization_id, key.id, project_id=project.id) == key
    await database.dispose()
    stored = _everything_in(tmp_path)
    assert hmac.digest(PEPPER, secret.encode(), "sha256") in stored
    assert secret.encode() not in stored
    assert secret[7:-4].encode() not in stored
    assert PEPPER not in stored


def _everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_kinds_have_prefixes_and_lists_of_their_own(store: Tenants, project: Project) -> None:
    organization_id = project.organization_id
    root, root_secret = await store.keys.create_root()
    admin, admin_secret = await store.keys.create_admin(organization_id, "admin")
    inference, _ = await store.keys.create_for_project(organization_id, project.id, "inference")
    assert root_secret.startswith("sk-root-")
    assert admin_secret.startswith("sk-admin-")
    assert root.organization_id is None
    assert (await store.keys.listed(organization_id)).items == [inference]
    assert (await store.keys.listed(organization_id, kind=KeyKind.ADMIN)).items == [admin]
    assert (await store.keys.listed(organization_id, kind=KeyKind.ROOT)).items == []


async def test_revoked_key_is_gone(store: Tenants, project: Project) -> None:
    key, _ = await store.keys.create_for_project(project.organization_id, project.id, "key")
    with pytest.raises(NotFound):
        await store.keys.revoke(project.organization_id, key.id, project_id="proj_other")
    revoked = await store.keys.revoke(project.organization_id, key.id, project_id=project.id)
    assert revoked.revoked_at is not None
    assert (await store.keys.listed(project.organization_id)).items == []
    for again in (store.keys.get, store.keys.revoke):
        with pytest.raises(NotFound):
            await again(project.organization_id, key.id)


async def test_pages_walk_the_whole_list_in_order_of_creation(
    store: Tenants, organization: Organization
) -> None:
    created = [(await store.projects.create(organization.id, f"p{number}")).id for number in range(7)]
    seen: list[str] = []
    after: str | None = None
    while True:
        page: Page[Project] = await store.projects.listed(organization.id, after=after, limit=3)
        assert len(page.items) <= 3
        seen += [item.id for item in page.items]
        if not page.has_more:
            break
        after = page.items[-1].id
    assert sorted(seen) == sorted(created)
    times = [(await store.projects.get(organization.id, entry)).created_at for entry in seen]
    assert times == sorted(times)
    page = await store.projects.listed(organization.id, after=seen[-1])
    assert page == Page([], has_more=False)
    assert (await store.projects.listed(organization.id, limit=7)).has_more is False


async def test_key_revoked_while_paging_is_still_a_cursor(store: Tenants, project: Project) -> None:
    organization_id = project.organization_id
    first, _ = await store.keys.create_for_project(organization_id, project.id, "first")
    await asyncio.sleep(0.002)  # keys of one millisecond are in order of their ids
    second, _ = await store.keys.create_for_project(organization_id, project.id, "second")
    await store.keys.revoke(organization_id, first.id)
    assert (await store.keys.listed(organization_id, after=first.id)).items == [second]


@pytest.mark.parametrize("limit", [0, -1, 101])
async def test_bad_limit_is_named(store: Tenants, limit: int) -> None:
    with pytest.raises(InvalidValue) as caught:
        await store.organizations.listed(limit=limit)
    assert caught.value.param == "limit"


async def test_cursor_of_another_organization_is_unknown(
    store: Tenants, organization: Organization, project: Project
) -> None:
    other = await store.organizations.create("other")
    for owner, cursor in ((other.id, project.id), (organization.id, "proj_unknown")):
        with pytest.raises(InvalidValue) as caught:
            await store.projects.listed(owner, after=cursor)
        assert caught.value.param == "after"
