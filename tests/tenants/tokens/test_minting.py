"""Tokens that a key mints: less than the key in every respect, and gone with it."""

import time
from dataclasses import replace

import jwt
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.errors import InvalidCredential, InvalidValue
from tenants.scopes import SCOPES, grants
from tenants.store import Tenants
from tenants.tokens.authentication import MAX_KEPT_S
from tenants.types import ApiKey, Principal, Project
from tests.tenants.conftest import PEPPER, Statements

REQUEST = frozenset({"model.request"})


async def _key(
    store: Tenants,
    project: Project,
    scopes: frozenset[str] = frozenset({"all"}),
    expires_at: int | None = None,
) -> tuple[ApiKey, Principal]:
    key, secret = await store.keys.create_for_project(
        project.organization_id, project.id, "key", scopes=scopes, expires_at=expires_at
    )
    return key, await store.credentials.authenticate(secret)


def _mint(
    store: Tenants,
    principal: Principal,
    *,
    user_id: str | None = "visitor",
    scopes: frozenset[str] = REQUEST,
    models: frozenset[str] | None = None,
    expires_in_s: int = 60,
) -> tuple[str, int]:
    return store.credentials.mint_token(
        principal, user_id=user_id, scopes=scopes, models=models, expires_in_s=expires_in_s
    )


async def test_a_token_stands_for_its_key(store: Tenants, project: Project, database: AsyncEngine) -> None:
    _, principal = await _key(store, project)
    token, expires_at = _mint(store, principal, models=frozenset({"small"}))
    assert abs(expires_at - time.time() - 60) < 5
    expected = replace(
        principal, user_id="visitor", scopes=REQUEST, models=frozenset({"small"}), issuer="torpor"
    )
    assert await store.credentials.authenticate(token) == expected
    statements = Statements(database)
    assert await store.credentials.authenticate(token) == expected
    assert (
        await store.credentials.authenticate(_mint(store, principal, user_id="other")[0])
    ).user_id == "other"
    assert statements.count == 0


async def test_it_dies_with_its_key(store: Tenants, project: Project) -> None:
    key, principal = await _key(store, project)
    token, _ = _mint(store, principal)
    await store.credentials.authenticate(token)
    await store.keys.revoke(project.organization_id, key.id)
    for item in (token, _mint(store, principal, user_id="late")[0]):
        with pytest.raises(InvalidCredential) as caught:
            await store.credentials.authenticate(item)
        assert caught.value.reason == "unknown"


async def test_it_dies_with_its_project(store: Tenants, project: Project) -> None:
    _, principal = await _key(store, project)
    token, _ = _mint(store, principal)
    await store.credentials.authenticate(token)
    await store.projects.archive(project.organization_id, project.id)
    with pytest.raises(InvalidCredential):
        await store.credentials.authenticate(token)


@pytest.mark.parametrize("seen", [True, False])
async def test_it_ends_at_its_second_and_with_its_keys(
    database: AsyncEngine, store: Tenants, project: Project, seen: bool
) -> None:
    clock = [time.time()]
    timed = Tenants.of(database, PEPPER, clock=lambda: clock[0])
    _, lasting = await _key(store, project)
    _, ending = await _key(store, project, expires_at=int(clock[0]) + 30)
    short, _ = _mint(timed, lasting, expires_in_s=60)
    bound, _ = _mint(timed, ending, expires_in_s=600)
    if seen:
        for token in (short, bound):
            await timed.credentials.authenticate(token)
    clock[0] += 31
    await timed.credentials.authenticate(short)
    with pytest.raises(InvalidCredential, match="the key that minted it has expired"):
        await timed.credentials.authenticate(bound)
    clock[0] += 30
    with pytest.raises(InvalidCredential, match="it has expired"):
        await timed.credentials.authenticate(short)


async def test_it_opens_no_more_than_its_key(store: Tenants, project: Project) -> None:
    _, principal = await _key(store, project, frozenset({"model.request", "api.files.read"}))
    assert _mint(store, principal, scopes=frozenset({"model.read", "api.files.read"}))
    for scope in ("all", "read", "api.files", "api.fine_tuning", "usage.read", "nonsense"):
        with pytest.raises(InvalidValue, match="scopes"):
            _mint(store, principal, scopes=frozenset({scope}))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"user_id": ""}, "user"),
        ({"user_id": "a\nb"}, "user"),
        ({"user_id": "x" * 257}, "user"),
        ({"scopes": frozenset()}, "scopes"),
        ({"models": frozenset()}, "models"),
        ({"models": frozenset(map(str, range(33)))}, "models"),
        ({"expires_in_s": 0}, "expires_in_seconds"),
        ({"expires_in_s": 86_401}, "expires_in_seconds"),
    ],
)
async def test_what_is_not_minted(
    store: Tenants, project: Project, changes: dict[str, object], param: str
) -> None:
    _, principal = await _key(store, project)
    with pytest.raises(InvalidValue) as caught:
        _mint(store, principal, **changes)  # type: ignore[arg-type]
    assert caught.value.param == param


async def test_the_largest_token_is_taken(store: Tenants, project: Project) -> None:
    _, principal = await _key(store, project)
    models = frozenset(f"{number:064}" for number in range(32))
    token, _ = _mint(store, principal, user_id="ü" * 256, models=models, scopes=SCOPES)
    assert (await store.credentials.authenticate(token)).models == models


async def test_tokens_of_another_installation_are_refused(
    store: Tenants, project: Project, database: AsyncEngine
) -> None:
    _, principal = await _key(store, project)
    token, _ = _mint(Tenants.of(database, b"another pepper" * 3), principal)
    with pytest.raises(InvalidCredential):
        await store.credentials.authenticate(token)
    claims = jwt.decode(token, options={"verify_signature": False})
    for secret in (PEPPER, b"\0" * 32):
        with pytest.raises(InvalidCredential):
            await store.credentials.authenticate(jwt.encode(claims, secret, algorithm="HS256"))


async def test_a_root_key_mints_nothing_that_opens(store: Tenants) -> None:
    _, secret = await store.keys.create_root()
    token, _ = _mint(store, await store.credentials.authenticate(secret))
    with pytest.raises(InvalidCredential):
        await store.credentials.authenticate(token)


def test_which_scope_includes_which() -> None:
    assert all(grants(frozenset({"all"}), scope) for scope in SCOPES)
    reading = {scope for scope in SCOPES if grants(frozenset({"read"}), scope)}
    assert reading == {"read", "model.read", "api.files.read", "api.fine_tuning.read", "usage.read"}
    assert {scope for scope in SCOPES if grants(frozenset({"api.files"}), scope)} == {
        "api.files",
        "api.files.read",
    }
    assert {scope for scope in SCOPES if grants(frozenset({"model.request"}), scope)} == {
        "model.request",
        "model.read",
    }
    assert not any(grants(frozenset(), scope) for scope in SCOPES)


async def test_a_clock_that_is_put_right_keeps_no_token_in_memory(
    database: AsyncEngine, store: Tenants, project: Project
) -> None:
    """Verified a year ahead, it would be remembered for a year."""
    now, steady = [time.time() + 366 * 24 * 3600], [0.0]
    ahead = Tenants.of(database, PEPPER, clock=lambda: now[0], steady=lambda: steady[0])
    _, principal = await _key(ahead, project)
    token, _ = _mint(ahead, principal, expires_in_s=3600)
    assert await ahead.credentials.authenticate(token)
    now[0] -= 366 * 24 * 3600
    steady[0] += MAX_KEPT_S - 1
    assert ahead.credentials.known(token)
    steady[0] += 1
    assert ahead.credentials.known(token) is None
    with pytest.raises(InvalidCredential, match="iat"):
        await ahead.credentials.authenticate(token)


async def test_a_clock_that_jumps_ahead_lets_the_token_expire_and_comes_back(
    database: AsyncEngine, store: Tenants, project: Project
) -> None:
    now = [time.time()]
    jumping = Tenants.of(database, PEPPER, clock=lambda: now[0])
    _, principal = await _key(jumping, project)
    token, _ = _mint(jumping, principal)
    assert await jumping.credentials.authenticate(token)
    now[0] += 366 * 24 * 3600
    with pytest.raises(InvalidCredential):
        await jumping.credentials.authenticate(token)
    now[0] -= 366 * 24 * 3600
    assert await jumping.credentials.authenticate(token)
