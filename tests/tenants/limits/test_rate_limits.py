"""Which limits apply, how they are changed, and that a change holds for the next request."""

from dataclasses import replace

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.errors import InvalidValue, NotFound
from tenants.limits.rate_limit_store import LimitStore
from tenants.limits.rate_limits import MOST, NO_LIMIT, LimitBook, RateLimit, SubjectType
from tenants.store import Tenants
from tenants.types import ALL_SCOPES, KeyKind, Project, ProjectPrincipal

DEFAULTS = RateLimit(requests_per_minute=100, requests_per_day=1000)


def principal(project: Project, key_id: str = "key_1", user_id: str | None = None) -> ProjectPrincipal:
    organization_id = project.organization_id
    return ProjectPrincipal(KeyKind.PROJECT, key_id, organization_id, "acme", project.id, user_id, ALL_SCOPES)


@pytest.fixture
def book() -> LimitBook:
    return LimitBook(DEFAULTS)


@pytest.fixture
def limits(database: AsyncEngine, book: LimitBook) -> LimitStore:
    return LimitStore(database, book)


def _names(book: LimitBook, who: ProjectPrincipal) -> dict[str, int]:
    result = book.applicable(who, "m")
    rates = {
        result.names[rate.key]: rate.amount for rate in (*result.requests, *result.tokens, *result.batch)
    }
    return rates | {ceiling.name: ceiling.most for ceiling in result.ceilings}


async def test_a_project_has_the_defaults_until_it_has_limits_of_its_own(
    limits: LimitStore, book: LimitBook, project: Project
) -> None:
    assert await limits.of_model(project.organization_id, project.id, "m") == DEFAULTS
    changed = await limits.update_model(
        project.organization_id, project.id, "m", {"requests_per_minute": 5, "tokens_per_minute": 50}
    )
    assert changed == replace(DEFAULTS, requests_per_minute=5, tokens_per_minute=50)
    assert _names(book, principal(project)) == {
        "requests per minute of the project for `m`": 5,
        "requests per day of the project for `m`": 1000,
        "tokens per minute of the project for `m`": 50,
    }
    assert await limits.of_model(project.organization_id, project.id, "other") == DEFAULTS
    back = await limits.update_model(
        project.organization_id, project.id, "m", {"requests_per_minute": None, "tokens_per_minute": None}
    )
    assert back == DEFAULTS


async def test_key_user_and_project_have_limits_for_all_models(
    limits: LimitStore, store: Tenants, book: LimitBook, project: Project
) -> None:
    organization_id = project.organization_id
    key, _ = await store.keys.create_for_project(organization_id, project.id, "key")
    who = principal(project, key.id, "user-1")
    before = _names(book, who)
    await limits.set_subject(organization_id, SubjectType.KEY, key.id, {"tokens_per_day": 7})
    await limits.set_subject(organization_id, SubjectType.USER, "user-1", {"concurrent_requests": 2})
    created = await limits.set_subject(
        organization_id, SubjectType.PROJECT, project.id, {"tokens_per_minute": 9}
    )
    assert _names(book, who) == before | {
        "tokens per day of the key": 7,
        "concurrent requests of the user": 2,
        "tokens per minute of the project": 9,
    }
    assert _names(book, principal(project)) == before | {"tokens per minute of the project": 9}
    await limits.delete_subject(organization_id, created.id)
    assert _names(book, principal(project)) == before
    with pytest.raises(NotFound):
        await limits.get_subject(organization_id, created.id)


async def test_setting_again_changes_what_is_named_and_nothing_else(
    limits: LimitStore, project: Project
) -> None:
    organization_id = project.organization_id
    subject = (organization_id, SubjectType.PROJECT, project.id)
    created = await limits.set_subject(*subject, {"tokens_per_minute": 9, "requests_per_minute": 3})
    changed = await limits.set_subject(*subject, {"tokens_per_minute": None})
    assert changed == replace(created, limit=RateLimit(requests_per_minute=3))
    assert (await limits.list_subjects(organization_id)).items == [changed]
    assert await limits.get_subject(organization_id, created.id) == changed


async def test_limits_are_there_after_a_restart(
    limits: LimitStore, book: LimitBook, database: AsyncEngine, project: Project
) -> None:
    await limits.update_model(project.organization_id, project.id, "m", {"requests_per_minute": 5})
    await limits.set_subject(project.organization_id, SubjectType.USER, "user-1", {"requests_per_day": 6})
    again = LimitBook(DEFAULTS)
    await LimitStore(database, again).load()
    who = principal(project, user_id="user-1")
    assert _names(again, who) == _names(book, who)
    assert _names(again, who)["requests per day of the user"] == 6


@pytest.mark.parametrize("size", [0, -1, MOST + 1])
async def test_a_bad_size_is_named_and_changes_nothing(
    limits: LimitStore, project: Project, size: int
) -> None:
    with pytest.raises(InvalidValue) as caught:
        await limits.update_model(project.organization_id, project.id, "m", {"requests_per_minute": size})
    assert caught.value.param == "requests_per_minute"
    assert await limits.of_model(project.organization_id, project.id, "m") == DEFAULTS


async def test_what_is_another_organizations_is_not_there(
    limits: LimitStore, store: Tenants, book: LimitBook, project: Project
) -> None:
    other = await store.organizations.create("other")
    key, _ = await store.keys.create_for_project(project.organization_id, project.id, "key")
    created = await limits.set_subject(
        project.organization_id, SubjectType.KEY, key.id, {"tokens_per_day": 7}
    )
    with pytest.raises(NotFound):
        await limits.update_model(other.id, project.id, "m", {"requests_per_minute": 1})
    with pytest.raises(NotFound):
        await limits.of_model(other.id, project.id, "m")
    with pytest.raises(NotFound):
        await limits.set_subject(other.id, SubjectType.KEY, key.id, {"tokens_per_day": 1})
    with pytest.raises(NotFound):
        await limits.set_subject(other.id, SubjectType.PROJECT, project.id, {"tokens_per_day": 1})
    with pytest.raises(NotFound):
        await limits.delete_subject(other.id, created.id)
    await limits.set_subject(other.id, SubjectType.USER, "same", {"tokens_per_day": 1})
    assert "tokens per day of the user" not in _names(book, principal(project, user_id="same"))
    assert (await limits.list_subjects(project.organization_id)).items == [created]


async def test_an_archived_project_and_a_revoked_key_get_no_limits(
    limits: LimitStore, store: Tenants, project: Project
) -> None:
    organization_id = project.organization_id
    key, _ = await store.keys.create_for_project(organization_id, project.id, "key")
    await store.keys.revoke(organization_id, key.id)
    with pytest.raises(NotFound):
        await limits.set_subject(organization_id, SubjectType.KEY, key.id, {"tokens_per_day": 1})
    await store.projects.archive(organization_id, project.id)
    with pytest.raises(InvalidValue, match="archived"):
        await limits.update_model(organization_id, project.id, "m", {"requests_per_minute": 1})


@pytest.mark.parametrize("user", ["", "  ", "x" * 257, "nul\0", "\ud800"])
async def test_a_bad_user_is_named(limits: LimitStore, project: Project, user: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        await limits.set_subject(project.organization_id, SubjectType.USER, user, {"tokens_per_day": 1})
    assert caught.value.param == "subject_id"


def test_what_was_resolved_takes_bounded_memory(project: Project) -> None:
    book = LimitBook(RateLimit(requests_per_minute=1), max_resolved=10)
    for number in range(100):
        assert book.applicable(principal(project, user_id=f"u{number}"), "m").requests
        assert len(book._resolved) <= 10
    assert NO_LIMIT.over(DEFAULTS) == DEFAULTS
