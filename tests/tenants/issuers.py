"""An OpenID-style issuer on a loopback port: discovery, JWKS, key rotation, and the faults of both."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tenants.errors import InvalidCredential
from tenants.store import Tenants
from tenants.tokens.issuers import Issuer
from tenants.tokens.sources import KeySource, ReadKeys
from tenants.types import Project
from tests.gateway.serving import serving

AUDIENCE = "https://torpor.test"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_SHARED: dict[str, PrivateKey] = {}


def private_key(algorithm: str, name: str = "") -> PrivateKey:
    """A key of the algorithm, the same for the same name: making one of RSA takes long."""
    result = _SHARED.get(algorithm + name)
    if result is None:
        if algorithm == "RS256":
            result = rsa.generate_private_key(65537, 2048)
        elif algorithm == "ES256":
            result = ec.generate_private_key(ec.SECP256R1())
        else:
            result = ed25519.Ed25519PrivateKey.generate()
        _SHARED[algorithm + name] = result
    return result


def public_pem(key: PrivateKey) -> bytes:
    """The public part, as an issuer would hand it out."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(key: PrivateKey, kid: str | None, **more: Any) -> dict[str, Any]:
    """The public part as a JWK."""
    public = key.public_key()
    document: dict[str, Any]
    if isinstance(public, rsa.RSAPublicKey):
        document = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        document = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        document = OKPAlgorithm.to_jwk(public, as_dict=True)
    document.pop("key_ops", None)
    return {**document, "use": "sig", **({"kid": kid} if kid else {}), **more}


def oct_jwk(secret: bytes, kid: str) -> dict[str, Any]:
    """A symmetric key, as no issuer should publish it."""
    return {"kty": "oct", "kid": kid, "k": base64.urlsafe_b64encode(secret).rstrip(b"=").decode()}


@dataclass
class IssuerServer:
    """What it serves can be changed while it runs. ``hits`` counts the requests for its keys."""

    url: str = ""
    algorithm: str = "RS256"
    kid: str = "first"
    keys: list[dict[str, Any]] = field(default_factory=list)
    hits: int = 0
    fault: str | None = None
    discovered: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> PrivateKey:
        """What it signs with now."""
        return private_key(self.algorithm, self.kid)

    def rotate(self, kid: str, *, keep: bool = False) -> None:
        """Signs with a new key from now on; ``keep``: the earlier ones stay in the set."""
        self.kid = kid
        self.keys = [*(self.keys if keep else []), jwk(self.key, kid)]

    def token(self, claims: dict[str, Any] | None = None, **header: Any) -> str:
        """A token like those of any OpenID provider; a claim of None is left out."""
        now = time.time()
        held = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "user-1",
            "iat": int(now),
            "exp": int(now) + 600,
            "scope": "openid model.request",
            **(claims or {}),
        }
        kept = {name: value for name, value in held.items() if value is not None}
        headers = {"kid": self.kid, **header}
        visible = {name: value for name, value in headers.items() if value is not None}
        return jwt.encode(kept, self.key, algorithm=self.algorithm, headers=visible)

    async def answer_keys(self, _request: Request) -> Response:
        """``jwks_uri``."""
        self.hits += 1
        if self.fault == "redirect":
            return RedirectResponse(f"{self.url}/elsewhere")
        if self.fault == "huge":
            return Response(b" " * 1_000_000)
        if self.fault == "garbage":
            return Response(b"<html>")
        if self.fault == "error":
            return Response(status_code=500)
        await asyncio.sleep(0.02)
        return JSONResponse({"keys": self.keys})

    async def answer_discovery(self, _request: Request) -> Response:
        """``/.well-known/openid-configuration``."""
        document = {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.discovered}
        return JSONResponse(document)

    async def elsewhere(self, _request: Request) -> Response:
        """Where a redirect would lead."""
        return JSONResponse({"keys": self.keys})


@asynccontextmanager
async def issuer_server() -> AsyncIterator[IssuerServer]:
    """An issuer that runs, with one key of RSA."""
    issuer = IssuerServer()
    app = Starlette(
        routes=[
            Route("/keys", issuer.answer_keys),
            Route("/elsewhere", issuer.elsewhere),
            Route("/.well-known/openid-configuration", issuer.answer_discovery),
        ]
    )
    async with serving(app) as port:
        issuer.url = f"http://127.0.0.1:{port}"
        issuer.rotate("first")
        yield issuer


def issuer_for(source: KeySource, issuer: str, **changes: Any) -> Issuer:
    """An issuer as an operator would configure it."""
    values: dict[str, Any] = {
        "id": "idp",
        "issuer": issuer,
        "audience": (AUDIENCE,),
        "algorithms": frozenset({"RS256", "ES256", "EdDSA"}),
        "keys": source,
        "organizations": frozenset({"acme"}),
        "project_claim": "project",
    }
    return Issuer(**{**values, **changes})


@dataclass
class Stage:
    """A store that takes the tokens of the issuer for ``acme`` alone."""

    store: Tenants
    idp: IssuerServer
    project: Project
    keys: ReadKeys
    now: list[float]

    def token(self, claims: dict[str, Any] | None = None, **header: Any) -> str:
        return self.idp.token({"project": self.project.id, **(claims or {})}, **header)

    async def detail(self, token: str) -> str:
        """Why the token was refused, as the log has it."""
        with pytest.raises(InvalidCredential) as caught:
            await self.store.credentials.authenticate(token)
        assert caught.value.reason == ("expired" if caught.value.detail == "it has expired" else "unknown")
        return caught.value.detail or ""

    async def told(self, token: str) -> str:
        """Why the token was refused, as its sender learns it."""
        with pytest.raises(InvalidCredential) as caught:
            await self.store.credentials.authenticate(token)
        assert caught.value.shown_detail is not None
        return caught.value.shown_detail
