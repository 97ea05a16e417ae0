"""The keys of issuers: read when they are needed, rotated, away, and what is not a key."""

import asyncio
import json
from collections.abc import Callable
from functools import partial

import pytest

from tenants.errors import IssuerUnavailable
from tenants.tokens import keys as token_keys
from tenants.tokens.sources import ReadKeys, discover, key_client
from tests.tenants.issuers import IssuerServer, Stage, jwk, oct_jwk, private_key, public_pem

SECRET = b"0123456789abcdef" * 2


async def test_rotated_key_is_found_at_its_first_token(stage: Stage) -> None:
    await stage.store.credentials.authenticate(stage.token())
    old = stage.token({"sub": "late"})
    stage.idp.rotate("second")
    stage.now[0] += 31
    assert (await stage.store.credentials.authenticate(stage.token({"sub": "user-2"}))).user_id == "user-2"
    assert stage.idp.hits == 2
    assert "no key of its issuer" in await stage.detail(old), "the earlier key is gone"


async def test_storm_of_unknown_kids_asks_the_issuer_once_in_a_while(stage: Stage) -> None:
    await stage.store.credentials.authenticate(stage.token())
    stage.now[0] += 31

    async def one(number: int) -> None:
        await stage.detail(stage.token(kid=f"kid-{number}"))

    await asyncio.gather(*map(one, range(50)))
    assert stage.idp.hits == 2
    stage.now[0] += 29
    await asyncio.gather(*map(one, range(50)))
    assert stage.idp.hits == 2
    stage.now[0] += 2
    await asyncio.gather(*map(one, range(50)))
    assert stage.idp.hits == 3


async def test_first_tokens_share_one_fetch(stage: Stage) -> None:
    tokens = [stage.token({"sub": f"user-{number}"}) for number in range(20)]
    await asyncio.gather(*map(stage.store.credentials.authenticate, tokens))
    assert stage.idp.hits == 1


async def test_one_caller_that_goes_away_takes_the_fetch_from_no_other(stage: Stage) -> None:
    leaving = asyncio.create_task(stage.store.credentials.authenticate(stage.token()))
    staying = asyncio.create_task(stage.store.credentials.authenticate(stage.token({"sub": "user-2"})))
    while stage.idp.hits == 0:
        await asyncio.sleep(0.001)
    leaving.cancel()
    assert (await staying).user_id == "user-2"
    assert stage.idp.hits == 1


@pytest.mark.parametrize("fault", ["redirect", "huge", "garbage", "error"])
async def test_keys_that_cannot_be_read_are_not_the_callers_fault(stage: Stage, fault: str) -> None:
    stage.idp.fault = fault
    for _ in range(5):
        with pytest.raises(IssuerUnavailable):
            await stage.store.credentials.authenticate(stage.token())
    assert stage.idp.hits == 1
    stage.idp.fault = None
    stage.now[0] += 31
    await stage.store.credentials.authenticate(stage.token())


async def _settled(keys: ReadKeys) -> None:
    assert keys._reading is not None
    await keys._reading


async def test_stale_keys_are_used_for_a_bounded_time(stage: Stage) -> None:
    await stage.store.credentials.authenticate(stage.token())
    stage.idp.fault = "error"

    async def user(name: str) -> str | None:
        return (await stage.store.credentials.authenticate(stage.token({"sub": name}))).user_id

    stage.now[0] += stage.keys.lifetime_s
    assert await user("a") == "a"
    await _settled(stage.keys)
    assert stage.idp.hits == 2
    with pytest.raises(IssuerUnavailable):
        await stage.store.credentials.authenticate(stage.token(kid="second"))
    stage.now[0] += stage.keys.stale_s - 1
    assert await user("b") == "b"
    stage.now[0] += 31
    with pytest.raises(IssuerUnavailable):
        await user("c")
    stage.idp.fault = None
    stage.now[0] += 31
    assert await user("c") == "c"


async def test_discovery_of_another_issuer_is_not_believed(idp: IssuerServer) -> None:
    async with key_client() as client:
        keys = ReadKeys(name="idp", read=partial(discover, client, idp.url), pause_s=0.0)
        for wrong in ({"issuer": "https://elsewhere.test"}, {"jwks_uri": "http://192.0.2.1/keys"}):
            idp.discovered = wrong
            with pytest.raises(IssuerUnavailable):
                await keys.current()
        assert idp.hits == 0
        idp.discovered = {}
        assert len((await keys.current()).keys) == 1


Made = Callable[[], token_keys.KeySet]


@pytest.mark.parametrize(
    "make",
    [
        lambda: token_keys.from_secret(b"short"),
        lambda: token_keys.from_secret(public_pem(private_key("ES256"))),
        lambda: token_keys.from_pem(b"nonsense"),
        lambda: token_keys.from_pem(b"-----BEGIN PRIVATE KEY-----\n"),
        lambda: token_keys.from_jwks(b"[]"),
        lambda: token_keys.from_jwks(b'{"keys": []}'),
        lambda: token_keys.from_jwks(b'{"keys":' + b"[" * 10_000),
        lambda: token_keys.from_jwks(json.dumps({"keys": [oct_jwk(SECRET, "a")]}).encode()),
        lambda: token_keys.from_jwks(json.dumps({"keys": [oct_jwk(b"short", "a")]}).encode(), secrets=True),
        lambda: token_keys.from_jwks(
            json.dumps({"keys": [jwk(private_key("ES256"), "a", alg="RS256")]}).encode()
        ),
        lambda: token_keys.from_jwks(
            json.dumps({"keys": [jwk(private_key("ES256"), "a", use="enc")]}).encode()
        ),
        lambda: token_keys.from_jwks(b'{"keys": [1, {}, {"kty": "EC"}, {"kty": "RSA", "n": 1, "e": 2}]}'),
    ],
)
def test_keys_that_are_not_taken(make: Made) -> None:
    with pytest.raises(token_keys.InvalidKeys):
        make()


def test_a_set_gives_what_is_usable_in_it() -> None:
    entries = [
        {"kty": "unknown"},
        oct_jwk(SECRET, "secret"),
        jwk(private_key("ES256"), "ec", alg="ES256"),
        jwk(private_key("EdDSA"), None, alg="Ed25519"),
    ]
    text = json.dumps({"keys": entries}).encode()
    assert token_keys.from_jwks(text).algorithms() == {"ES256", "EdDSA"}
    assert token_keys.from_jwks(text, secrets=True).algorithms() == {"ES256", "EdDSA", "HS256"}
