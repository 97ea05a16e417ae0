"""Issuers as an operator writes them into the configuration, each with keys from another source."""

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from gateway.config.identity import make_issuers
from gateway.config.sections import load_config
from tenants.errors import InvalidCredential
from tenants.tokens.envelope import open_envelope
from tenants.tokens.issuers import Issuers, Statement
from tests.tenants.issuers import AUDIENCE, IssuerServer, issuer_server, jwk, private_key, public_pem

SECRET = "a secret that is long enough for HS256"

TABLES = """
[[issuers]]
id = "by-url"
issuer = "{url}"
audience = ["{audience}", "another"]
algorithms = ["RS256"]
organizations = ["*"]
jwks_url = "{url}/keys"
project_claim = "project"
organization_claim = "org.name"
leeway_s = 5

[[issuers]]
id = "by-file"
issuer = "https://file.example.com"
audience = ["{audience}"]
algorithms = ["ES256"]
organizations = ["acme"]
jwks_file = "keys.json"
project = "proj_fixed"
scope_claim = "permissions"
default_scopes = ["model.read"]

[[issuers]]
id = "by-pem"
issuer = "https://pem.example.com"
audience = ["{audience}"]
algorithms = ["EdDSA"]
organizations = ["acme"]
pem_file = "key.pem"
project = "proj_fixed"
user_claim = "person.email"

[[issuers]]
id = "by-secret"
issuer = "https://secret.example.com"
audience = ["{audience}"]
algorithms = ["HS256"]
organizations = ["acme"]
secret_env = "IDP_SECRET"
project = "proj_fixed"
"""


class Site:
    """The issuers of the file, and tokens for them."""

    def __init__(self, issuers: Issuers) -> None:
        self._issuers = issuers

    async def verified(self, issuer: str, key: Any, algorithm: str, **claims: Any) -> Statement:
        now = int(time.time())
        held = {"iss": issuer, "aud": AUDIENCE, "sub": "alice", "exp": now + 60, **claims}
        token = jwt.encode(held, key, algorithm=algorithm)
        envelope = open_envelope(token)
        return await self._issuers.of(envelope).verify(token, envelope, now)


@pytest.fixture
async def idp() -> AsyncIterator[IssuerServer]:
    async with issuer_server() as issuer:
        yield issuer


@pytest.fixture
async def site(tmp_path: Path, idp: IssuerServer) -> AsyncIterator[Site]:
    keys = {"keys": [jwk(private_key("ES256", "file"), None)]}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    (tmp_path / "key.pem").write_bytes(public_pem(private_key("EdDSA", "pem")))
    file = tmp_path / "torpor.toml"
    file.write_text(TABLES.format(url=idp.url, audience=AUDIENCE))
    environment = {"IDP_SECRET": SECRET}
    config = load_config(file, environment)
    async with httpx.AsyncClient(trust_env=False) as client:
        yield Site(Issuers(make_issuers(config.issuers, environment, client)))


async def test_keys_of_a_url(site: Site, idp: IssuerServer) -> None:
    claims = {"project": "proj_1", "org": {"name": "acme"}, "scope": "model.request"}
    stated = await site.verified(idp.url, idp.key, "RS256", **claims)
    assert (stated.project_id, stated.organization, stated.user_id) == ("proj_1", "acme", "alice")
    assert stated.scopes == {"model.request"}
    assert (await site.verified(idp.url, idp.key, "RS256", **claims, aud="another")).project_id == "proj_1"
    just_expired = int(time.time()) - 3
    await site.verified(idp.url, idp.key, "RS256", **claims, exp=just_expired)
    with pytest.raises(InvalidCredential, match="expired"):
        await site.verified(idp.url, idp.key, "RS256", **claims, exp=just_expired - 5)
    assert idp.hits == 1


async def test_keys_of_a_file_beside_the_configuration(site: Site) -> None:
    issuer, key = "https://file.example.com", private_key("ES256", "file")
    stated = await site.verified(issuer, key, "ES256")
    assert stated.project_id == "proj_fixed"
    assert stated.scopes == {"model.read"}
    assert (await site.verified(issuer, key, "ES256", permissions=["model.request"])).scopes == {
        "model.request"
    }


async def test_a_public_key_in_a_pem_file(site: Site) -> None:
    issuer, key = "https://pem.example.com", private_key("EdDSA", "pem")
    stated = await site.verified(issuer, key, "EdDSA", person={"email": "alice@example.com"})
    assert stated.user_id == "alice@example.com"
    with pytest.raises(InvalidCredential):
        await site.verified(issuer, private_key("EdDSA", "another"), "EdDSA")


async def test_a_secret_in_the_environment(site: Site) -> None:
    issuer = "https://secret.example.com"
    assert (await site.verified(issuer, SECRET, "HS256")).project_id == "proj_fixed"
    with pytest.raises(InvalidCredential):
        await site.verified(issuer, SECRET[::-1], "HS256")


async def test_an_issuer_that_nobody_configured(site: Site) -> None:
    with pytest.raises(InvalidCredential):
        await site.verified("https://nobody.example.com", SECRET, "HS256")
