"""Tokens of issuers: what is taken, and every known way in which one is forged."""

import base64
import hashlib
import hmac
import json
import time
from functools import partial
from typing import Any

import jwt
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tenants.errors import InvalidCredential
from tenants.store import Tenants
from tenants.tokens import keys as token_keys
from tenants.tokens.sources import FixedKeys, ReadKeys, discover, key_client
from tenants.types import KeyKind, Project, ProjectPrincipal
from tests.tenants.conftest import PEPPER, Statements
from tests.tenants.issuers import AUDIENCE, IssuerServer, Stage, issuer_for, private_key, public_pem


async def test_a_token_stands_for_a_user_of_the_project(stage: Stage) -> None:
    assert await stage.store.credentials.authenticate(stage.token()) == ProjectPrincipal(
        kind=KeyKind.PROJECT,
        key_id="jwt_idp",
        organization_id=stage.project.organization_id,
        organization="acme",
        project_id=stage.project.id,
        user_id="user-1",
        scopes=frozenset({"model.request"}),
        issuer="idp",
    )


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_algorithms(stage: Stage, algorithm: str) -> None:
    stage.idp.algorithm = algorithm
    stage.idp.rotate("first")
    assert (await stage.store.credentials.authenticate(stage.token())).user_id == "user-1"
    assert (await stage.store.credentials.authenticate(stage.token(kid=None))).user_id == "user-1"


async def test_known_token_is_not_verified_again(stage: Stage, database: AsyncEngine) -> None:
    token = stage.token()
    await stage.store.credentials.authenticate(token)
    statements = Statements(database)
    for _ in range(100):
        await stage.store.credentials.authenticate(token)
    assert stage.store.credentials.known(token) is not None
    assert statements.count == 0
    assert stage.idp.hits == 1
    other = stage.token({"sub": "user-2"})
    assert stage.store.credentials.known(other) is None
    assert (await stage.store.credentials.authenticate(other)).user_id == "user-2"
    assert statements.count == 0, "the project is known"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": None}, "it has no exp"),
        ({"exp": 1}, "expired"),
        ({"exp": "9999999999"}, "not a number"),
        ({"exp": 1e300}, "not a number"),
        ({"nbf": 9999999999}, "nbf is in the future"),
        ({"iat": 9999999999}, "iat is in the future"),
        ({"aud": "https://elsewhere.test"}, "another audience"),
        ({"aud": None}, "it has no aud"),
        ({"iss": "https://elsewhere.test"}, "not accepted here"),
        ({"iss": None}, "no iss"),
        ({"project": None}, "'project'"),
        ({"project": "proj_unknown"}, "unknown"),
        ({"project": ["a"]}, "'project'"),
        ({"sub": "a\0b"}, "'sub'"),
        ({"sub": "x" * 257}, "'sub'"),
        ({"scope": 7}, "'scope'"),
    ],
)
async def test_claims_that_are_refused(stage: Stage, claims: dict[str, Any], reason: str) -> None:
    assert reason in await stage.detail(stage.token(claims))


async def test_leeway(stage: Stage) -> None:
    now = time.time()
    await stage.store.credentials.authenticate(stage.token({"exp": now - 20, "nbf": now + 20}))
    assert "expired" in await stage.detail(stage.token({"exp": now - 40}))


async def test_scopes_are_words_or_a_list_and_only_torpors_own(stage: Stage) -> None:
    async def scopes(value: Any) -> frozenset[str]:
        return (await stage.store.credentials.authenticate(stage.token({"scope": value}))).scopes

    assert await scopes("openid email model.read") == {"model.read"}
    assert await scopes(["model.read", "all", "root"]) == {"model.read", "all"}
    assert await scopes("openid") == frozenset()
    assert await scopes(None) == frozenset()


def _unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode())
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def _claims(stage: Stage) -> dict[str, Any]:
    return dict(jwt.decode(stage.token(), options={"verify_signature": False}))


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
async def test_none_is_no_algorithm(stage: Stage, name: str) -> None:
    unsigned = _unsigned({"alg": name, "typ": "JWT"}, _claims(stage))
    assert "not allowed" in await stage.detail(unsigned + ".")


async def test_the_public_key_is_no_shared_secret(stage: Stage) -> None:
    signed = _unsigned({"alg": "HS256", "kid": "first"}, _claims(stage))
    for secret in (public_pem(stage.idp.key), json.dumps(stage.idp.keys[0]).encode()):
        mac = base64.urlsafe_b64encode(hmac.digest(secret, signed.encode(), hashlib.sha256))
        assert "not allowed" in await stage.detail(f"{signed}.{mac.rstrip(b'=').decode()}")


async def test_the_public_key_is_no_shared_secret_where_both_algorithms_are_allowed(
    database: AsyncEngine, project: Project
) -> None:
    key = private_key("RS256", "first")
    issuer = issuer_for(
        FixedKeys(token_keys.from_pem(public_pem(key))),
        "https://idp.test",
        algorithms=frozenset({"RS256", "HS256"}),
    )
    store = Tenants.of(database, PEPPER, issuers=[issuer])
    claims = {"iss": "https://idp.test", "aud": AUDIENCE, "exp": time.time() + 60, "project": project.id}
    assert await store.credentials.authenticate(jwt.encode(claims, key, algorithm="RS256"))
    signed = _unsigned({"alg": "HS256"}, claims)
    mac = base64.urlsafe_b64encode(hmac.digest(public_pem(key), signed.encode(), hashlib.sha256))
    with pytest.raises(InvalidCredential, match="no key of its issuer"):
        await store.credentials.authenticate(f"{signed}.{mac.rstrip(b'=').decode()}")


async def test_signature_of_a_key_that_is_not_the_issuers(stage: Stage) -> None:
    forger = private_key("RS256", "forger")
    forged = jwt.encode(_claims(stage), forger, algorithm="RS256", headers={"kid": "first"})
    assert "no key of its issuer" in await stage.detail(forged)
    head, body, signature = stage.token().split(".")
    assert "no key of its issuer" in await stage.detail(f"{head}.{body}.{'AAAA' + signature[4:]}")


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/certificate"},
        {"crit": ["exp"]},
        {"zip": "DEF"},
    ],
)
async def test_a_token_brings_no_key_of_its_own(stage: Stage, header: dict[str, Any]) -> None:
    name = next(iter(header))
    assert f"'{name}' is not allowed" in await stage.detail(stage.token(**header))


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/etc/passwd",
        "http://127.0.0.1:1/keys",
        "' UNION SELECT 'key' --",
        "first\0",
        "",
    ],
)
async def test_kid_only_selects_among_the_issuers_keys(stage: Stage, kid: str) -> None:
    assert "no key of its issuer" in await stage.detail(stage.token(kid=kid))


async def test_what_should_be_text_and_is_not(stage: Stage) -> None:
    assert "no iss" in await stage.detail(_unsigned({"alg": "RS256"}, {"iss": ["a"]}) + ".AAAA")
    for kid in (7, ["first"], {"a": 1}, "x" * 300):
        token = _unsigned({"alg": "RS256", "kid": kid}, _claims(stage)) + ".AAAA"
        assert "kid" in await stage.detail(token)


@pytest.mark.parametrize(
    "token",
    [
        "eyJ" + "a" * 10_000_000 + ".a.a",
        "eyJ.eyJ.eyJ",
        "eyJ..",
        "eyJhIjoxfQ.eyJhIjoxfQ.",
        "eyJ\ud800.a.a",
        "eyJü.a.a",
        base64.urlsafe_b64encode(b'{"a":' + b"[" * 5000).decode().rstrip("=") + ".e30.e30",
        _unsigned({"alg": "RS256"}, {"iss": "torpor"}) + ".AAAA",
        _unsigned({"alg": "HS256"}, {"iss": "torpor", "key": "key_1", "exp": 9e9}) + ".AAAA",
    ],
    ids=["huge", "empty", "bare", "poor", "surrogate", "umlaut", "deep", "own-rs256", "own-forged"],
)
async def test_what_is_no_token_costs_nothing_and_breaks_nothing(stage: Stage, token: str) -> None:
    begun = time.perf_counter()
    assert await stage.detail(token)
    assert stage.store.credentials.known(token) is None
    assert time.perf_counter() - begun < 0.2
    assert stage.idp.hits == 0


async def test_an_issuer_speaks_for_its_organizations_alone(stage: Stage, store: Tenants) -> None:
    other = await store.organizations.create("umbrella")
    theirs = await store.projects.create(other.id, "secret plans")
    token = stage.token({"project": theirs.id})
    assert "may not speak for the project's organization" in await stage.detail(token)
    absent = stage.token({"project": "proj_absent"})
    assert await stage.told(token) == await stage.told(absent), (
        "a tenant cannot learn which projects others have"
    )
    await store.projects.archive(other.id, theirs.id)
    assert await stage.told(token) == await stage.told(absent)


async def test_before_the_signature_is_verified_only_what_the_sender_wrote_is_told(stage: Stage) -> None:
    """What a forger tries is answered as if everything but the signature were right."""
    forger = private_key("RS256", "forger")

    def forged(**claims: Any) -> str:
        content = {**_claims(stage), **claims}
        return jwt.encode(content, forger, algorithm="RS256", headers={"kid": "first"})

    answers = {
        await stage.told(forged(**claims))
        for claims in ({}, {"exp": 1}, {"aud": "elsewhere"}, {"project": "proj_absent"}, {"sub": 7})
    }
    assert answers == {"no key of its issuer verifies its signature"}


async def test_the_organization_that_is_named_must_be_the_projects(
    idp: IssuerServer, database: AsyncEngine, store: Tenants, project: Project
) -> None:
    other = await store.organizations.create("umbrella")
    async with key_client() as client:
        source = ReadKeys(name="idp", read=partial(discover, client, idp.url))
        issuer = issuer_for(
            source,
            idp.url,
            organizations=frozenset({"*"}),
            organization_claim="https://torpor.test/organization",
            project_claim="torpor.project",
            scope_claim="realm_access.roles",
            default_scopes=frozenset({"model.read"}),
        )
        store = Tenants.of(database, PEPPER, issuers=[issuer])
        nested: dict[str, Any] = {"torpor": {"project": project.id}}
        for named in ("acme", project.organization_id):
            principal = await store.credentials.authenticate(
                idp.token({**nested, "https://torpor.test/organization": named})
            )
            assert principal.organization == "acme"
            assert principal.scopes == {"model.read"}
        roles = {"realm_access": {"roles": ["offline_access", "model.request"]}}
        principal = await store.credentials.authenticate(
            idp.token({**nested, **roles, "https://torpor.test/organization": "acme"})
        )
        assert principal.scopes == {"model.request"}
        for wrong in (other.id, "umbrella", "acm", None):
            token = idp.token({**nested, "https://torpor.test/organization": wrong})
            with pytest.raises(InvalidCredential):
                await store.credentials.authenticate(token)


async def test_archived_project_closes_its_tokens_at_once(stage: Stage) -> None:
    token = stage.token()
    await stage.store.credentials.authenticate(token)
    await stage.store.projects.archive(stage.project.organization_id, stage.project.id)
    assert stage.store.credentials.known(token) is None
    assert "archived" in await stage.detail(token)
