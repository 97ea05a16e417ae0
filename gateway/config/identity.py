"""``[authentication]`` and ``[[issuers]]``: who is believed, and what is made of it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from gateway.config.faults import Fault
from tenants.scopes import SCOPES
from tenants.tokens.issuers import Issuer
from tenants.tokens.keys import ALGORITHMS, InvalidKeys, KeySet, from_jwks, from_pem, from_secret
from tenants.tokens.minting import ISSUER
from tenants.tokens.sources import FixedKeys, KeySource, ReadKeys, discover, is_safe_url, read_file, read_url

_MAX_ID = 56
_MAX_LEEWAY_S = 300.0
_SOURCES = ("jwks_url", "jwks_file", "pem_file", "secret_env", "discovery")
_FILE_LIFETIME_S = 60.0
_FILE_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationConfig:
    """``[authentication]``: what is done about wrong keys, and without the database. Times in seconds."""

    failures_per_minute: int = 20
    memory_s: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerConfig:
    """One ``[[issuers]]`` table: whose tokens are taken, for which organizations."""

    id: str
    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    organizations: tuple[str, ...]
    jwks_url: str | None = None
    jwks_file: Path | None = None
    pem_file: Path | None = None
    secret_env: str | None = None
    discovery: bool = False
    jwks_lifetime_s: float = 600.0
    jwks_stale_s: float = 3600.0
    project: str | None = None
    project_claim: str | None = None
    organization_claim: str | None = None
    user_claim: str = "sub"
    scope_claim: str = "scope"
    default_scopes: tuple[str, ...] = ()
    leeway_s: float = 30.0

    def fixed_keys(self, environment: Mapping[str, str]) -> KeySet | None:
        """The keys in the configuration or a file; ``None`` for a URL. Raises `InvalidKeys` and OSError."""
        if self.jwks_file is not None:
            return from_jwks(self.jwks_file.read_bytes(), secrets=True)
        if self.pem_file is not None:
            return from_pem(self.pem_file.read_bytes())
        if self.secret_env is not None:
            return from_secret(environment[self.secret_env].encode())
        return None

    def source(self, environment: Mapping[str, str], client: httpx.AsyncClient) -> KeySource:
        """Where its keys come from while the gateway runs."""
        if self.jwks_file is not None:
            read = partial(read_file, self.jwks_file)
            return ReadKeys(
                name=self.id,
                read=read,
                lifetime_s=_FILE_LIFETIME_S,
                stale_s=self.jwks_stale_s,
                pause_s=_FILE_PAUSE_S,
            )
        keys = self.fixed_keys(environment)
        if keys is not None:
            return FixedKeys(keys)
        fetch = (
            partial(discover, client, self.issuer)
            if self.jwks_url is None
            else partial(read_url, client, self.jwks_url)
        )
        return ReadKeys(name=self.id, read=fetch, lifetime_s=self.jwks_lifetime_s, stale_s=self.jwks_stale_s)


def make_issuers(
    configured: Sequence[IssuerConfig], environment: Mapping[str, str], client: httpx.AsyncClient
) -> list[Issuer]:
    """What `issuer_faults` found nothing wrong with."""
    return [
        Issuer(
            id=issuer.id,
            issuer=issuer.issuer,
            audience=issuer.audience,
            algorithms=frozenset(issuer.algorithms),
            keys=issuer.source(environment, client),
            organizations=frozenset(issuer.organizations),
            project=issuer.project,
            project_claim=issuer.project_claim,
            organization_claim=issuer.organization_claim,
            user_claim=issuer.user_claim,
            scope_claim=issuer.scope_claim,
            default_scopes=frozenset(issuer.default_scopes),
            leeway_s=issuer.leeway_s,
        )
        for issuer in configured
    ]


def issuer_faults(issuers: Sequence[IssuerConfig], environment: Mapping[str, str]) -> Iterator[Fault]:
    """What is wrong with the tables, in their order."""
    seen: set[str] = set()
    for index, issuer in enumerate(issuers):
        for key, value in (("id", issuer.id), ("issuer", issuer.issuer)):
            if f"{key} {value}" in seen:
                yield Fault("issuers", key, f"there are two issuers {value!r}", index)
            seen.add(f"{key} {value}")
        for key, what in _faults(issuer, environment):
            yield Fault("issuers", key, what, index)


def _faults(issuer: IssuerConfig, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    name = issuer.id.replace("-", "").replace("_", "")
    if not (name.isascii() and name.isalnum() and len(issuer.id) <= _MAX_ID):
        yield "id", f"must be 1 to {_MAX_ID} of the characters A-Z, a-z, 0-9, '_' and '-'"
    if issuer.issuer in ("", ISSUER):
        yield "issuer", f"must be the text of the claim iss, and not {ISSUER!r}, which is Torpor itself"
    for key in ("audience", "algorithms", "organizations"):
        if not getattr(issuer, key):
            yield key, "must not be empty"
    yield from _unknown("algorithms", issuer.algorithms, ALGORITHMS)
    yield from _unknown("default_scopes", issuer.default_scopes, sorted(SCOPES))
    if (issuer.project is None) == (issuer.project_claim is None):
        yield "project_claim", "give either project_claim or project"
    if not 0 <= issuer.leeway_s <= _MAX_LEEWAY_S:
        yield "leeway_s", f"must be between 0 and {_MAX_LEEWAY_S:g}"
    for key in ("jwks_lifetime_s", "jwks_stale_s"):
        if not 0 < getattr(issuer, key) < float("inf"):
            yield key, "must be more than 0"
    yield from _source_faults(issuer, environment)


def _unknown(key: str, given: Sequence[str], allowed: Collection[str]) -> Iterator[tuple[str, str]]:
    for name in given:
        if name not in allowed:
            yield key, f"must be of {', '.join(allowed)}, not {name!r}"


def _source_faults(issuer: IssuerConfig, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    given = [name for name in _SOURCES if getattr(issuer, name) not in (None, False)]
    if len(given) != 1:
        yield "jwks_url", f"give one of {', '.join(_SOURCES)}"
        return
    source = given[0]
    url: Any = issuer.issuer if source == "discovery" else issuer.jwks_url
    if source in ("discovery", "jwks_url"):
        if not is_safe_url(url):
            yield source, f"needs https (or http on this machine itself), not {url!r}"
        if "HS256" in issuer.algorithms:
            yield "algorithms", "HS256 needs a secret, which is in no public set of keys"
        return
    if source == "secret_env" and issuer.secret_env not in environment:
        yield source, f"{issuer.secret_env} is not set"
        return
    try:
        keys = issuer.fixed_keys(environment)
    except InvalidKeys as error:
        yield source, str(error)
    except OSError as error:
        yield source, f"cannot be read ({error.strerror})"
    else:
        if keys is not None and not keys.algorithms() & set(issuer.algorithms):
            yield "algorithms", f"the keys are for {', '.join(sorted(keys.algorithms()))}"
