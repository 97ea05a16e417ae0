"""Tokens, browsers and wrong keys over HTTP, at a real gateway with a real issuer beside it."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.process import QUESTION, Gateway, free_port, running_gateway
from tests.tenants.issuers import AUDIENCE, IssuerServer, issuer_server

ORIGIN = "https://app.example.com"


@contextmanager
def _issuer() -> Iterator[IssuerServer]:
    """An issuer on an event loop of its own, in a thread."""
    started, ended = threading.Event(), asyncio.Event()
    result: list[tuple[IssuerServer, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        async with issuer_server() as issuer:
            result.append((issuer, asyncio.get_running_loop()))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(20)
    issuer, loop = result[0]
    try:
        yield issuer
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(20)


@dataclass
class Site:
    """A gateway that believes the issuer for its demo organization."""

    gateway: Gateway
    idp: IssuerServer
    project: str
    metrics_port: int

    def call(self, method: str, path: str, secret: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {secret}", **options.pop("headers", {})}
        url = f"{self.gateway.origin}{path}"
        return httpx.request(method, url, headers=headers, timeout=30, trust_env=False, **options)

    def chat(self, secret: str, model: str = "far", **options: Any) -> httpx.Response:
        body = {"model": model, "messages": QUESTION}
        return self.call("POST", "/v1/chat/completions", secret, json=body, **options)

    def token(self, claims: dict[str, Any] | None = None, **header: Any) -> str:
        return self.idp.token({"project": self.project, **(claims or {})}, **header)

    def mint(self, secret: str, **body: Any) -> httpx.Response:
        return self.call("POST", "/v1/torpor/tokens", secret, json=body)

    def new_key(self) -> tuple[str, str]:
        path = f"/v1/organization/projects/{self.project}/service_accounts"
        created = self.call("POST", path, self.gateway.admin_key, json={"name": "more"}).json()["api_key"]
        return created["id"], created["value"]

    def metrics(self) -> dict[str, float]:
        answer = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False)
        assert answer.status_code == 200
        lines = [line for line in answer.text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture(scope="module")
def site(standin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    metrics_port = free_port()
    sections = f"""trusted_proxies = ["127.0.0.1"]
cors_origins = ["{ORIGIN}"]
log_format = "json"

[metrics]
port = {metrics_port}
by_project = true
"""
    models = "".join(f'[[models]]\nid = "{name}"\nurl = "{standin}/v1"\n' for name in ("far", "near"))
    with _issuer() as idp:
        issuers = f"""
[[issuers]]
id = "idp"
issuer = "{idp.url}"
audience = ["{AUDIENCE}"]
algorithms = ["RS256", "ES256"]
organizations = ["demo"]
discovery = true
project_claim = "project"
"""
        folder = tmp_path_factory.mktemp("identities")
        with running_gateway(folder, models + issuers, sections) as gateway:
            admin = {"authorization": f"Bearer {gateway.admin_key}"}
            projects = httpx.get(f"{gateway.base_url}/organization/projects", headers=admin, trust_env=False)
            yield Site(gateway, idp, projects.json()["data"][0]["id"], metrics_port)


def test_a_users_token_is_metered_under_the_users_name(site: Site) -> None:
    token = site.token({"sub": "alice@example.com"})
    assert site.chat(token).json()["choices"][0]["message"]["content"]
    client = site.gateway.client(token)
    assert [model.id for model in client.models.list()] == ["far", "near"]
    query = {"start_time": int(time.time()) - 60, "group_by": ["user_id", "api_key_id"]}
    usage = site.call(
        "GET", "/v1/organization/usage/completions", site.gateway.admin_key, params=query
    ).json()
    results = [item for bucket in usage["data"] for item in bucket["results"]]
    assert ("alice@example.com", "jwt_idp") in {(item["user_id"], item["api_key_id"]) for item in results}


def test_the_sender_of_a_refused_token_learns_what_is_wrong_with_it(site: Site) -> None:
    address = {"x-forwarded-for": "198.51.100.1"}
    no_project = "the project that it names does not exist, or its issuer may not speak for it"
    head, body, _ = site.token().split(".")
    refused = {
        site.token({"exp": 1}): "it has expired",
        site.token({"nbf": 9999999999}): "it is not valid yet: its nbf is in the future",
        site.token({"aud": "elsewhere"}): "it is for another audience",
        site.token({"iss": "https://elsewhere"}): "its issuer 'https://elsewhere' is not accepted here",
        site.token({"project": "proj_unknown"}): no_project,
        f"{head}.{body}.{'A' * 342}": "no key of its issuer verifies its signature",
        site.token(kid="other"): "no key of its issuer verifies its signature",
        f"{head}.!.AAAA": "it is not made of JSON objects in base64url",
        f"{head}.{'a' * 9000}.AAAA": "it is longer than 8192 characters",
    }
    for number, (token, reply) in enumerate(refused.items()):
        answer = site.chat(token, headers={**address, "x-request-id": f"refused-{number}"})
        assert answer.status_code == 401
        assert answer.json() == {
            "error": {
                "message": f"Invalid token: {reply}.",
                "type": "authentication_error",
                "param": None,
                "code": "invalid_api_key",
            }
        }
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    for _ in range(100):
        if f"refused-{len(refused) - 1}" in site.gateway.log:
            break
        time.sleep(0.05)
    assert "what it speaks for is unknown" in site.gateway.log
    assert not any(token in site.gateway.log for token in refused)


def test_scopes(site: Site) -> None:
    reader = site.token({"scope": "model.read"})
    assert site.call("GET", "/v1/models", reader).status_code == 200
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("POST", "/v1/responses"),
        ("DELETE", "/v1/models/far"),
        ("GET", "/v1/files"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/torpor/usage"),
        ("GET", "/v1/organization/projects"),
        ("GET", "/v1/torpor/engines"),
        ("POST", "/v1/torpor/tokens"),
    ):
        answer = site.call(method, path, reader)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope"), path
    readers = site.token({"scope": "read"})
    assert site.call("GET", "/v1/files", readers).status_code == 501
    assert site.call("POST", "/v1/files", readers).status_code == 403
    assert site.call("GET", "/v1/torpor/usage", readers, params={"start_time": 1}).status_code == 200


def test_a_minted_token_is_for_its_models_and_its_time(site: Site) -> None:
    key_id, key = site.new_key()
    created = site.mint(key, user="visitor", models=["far"], expires_in_seconds=60)
    assert created.headers["cache-control"] == "no-store"
    assert abs(created.json()["expires_at"] - time.time() - 60) < 5
    token = created.json()["value"]
    assert site.chat(token).status_code == 200
    hidden, absent = site.chat(token, "near"), site.chat(token, "none")
    assert (hidden.status_code, absent.status_code) == (404, 404)
    assert hidden.content.replace(b"near", b"none") == absent.content
    listed = site.call("GET", "/v1/models", token).json()["data"]
    assert [model["id"] for model in listed] == ["far"]
    assert site.call("GET", "/v1/torpor/usage", token).status_code == 403
    assert site.mint(token).json()["error"]["code"] == "insufficient_scope"
    path = f"/v1/organization/projects/{site.project}/api_keys/{key_id}"
    assert site.call("DELETE", path, site.gateway.admin_key).status_code == 200
    assert site.chat(token).status_code == 401


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"user": 7}, 400, "user"),
        ({"user": ""}, 400, "user"),
        ({"scopes": "model.request"}, 400, "scopes"),
        ({"scopes": ["root"]}, 400, "scopes"),
        ({"scopes": [7]}, 400, "scopes"),
        ({"scopes": []}, 400, "scopes"),
        ({"models": ["none"]}, 404, "model"),
        ({"models": [None]}, 400, "models"),
        ({"models": {}}, 400, "models"),
        ({"expires_in_seconds": 0}, 400, "expires_in_seconds"),
        ({"expires_in_seconds": 1e9}, 400, "expires_in_seconds"),
        ({"expires_in_seconds": True}, 400, "expires_in_seconds"),
        ({"expires_in_seconds": 10**30}, 400, "expires_in_seconds"),
        ({"ttl": 1}, 400, "ttl"),
    ],
)
def test_what_is_asked_of_the_mint_wrongly(site: Site, body: dict[str, Any], status: int, param: str) -> None:
    answer = site.mint(site.gateway.api_key, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_an_address_that_tries_many_keys_has_to_wait(site: Site) -> None:
    address = {"x-forwarded-for": "203.0.113.7"}
    assert site.call("GET", "/v1/models", site.gateway.api_key).status_code == 200

    def attempt(number: int, **more: str) -> httpx.Response:
        return site.call("GET", "/v1/models", f"sk-{number:048}", headers={**address, **more})

    answers = [attempt(number) for number in range(22)]
    assert [answer.status_code for answer in answers] == [401] * 20 + [429] * 2
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 3
    existing = site.call("GET", "/v1/models", site.gateway.api_key, headers=address)
    assert existing.status_code == 200, "a key in memory is not refused"
    elsewhere = site.call("GET", "/v1/models", "sk-wrong", headers={"x-forwarded-for": "203.0.113.8"})
    assert elsewhere.status_code == 401


def test_a_page_that_retries_its_expired_token_locks_nobody_out(site: Site) -> None:
    address, expired = {"x-forwarded-for": "203.0.113.9"}, site.token({"exp": 1})
    answers = [site.call("GET", "/v1/models", expired, headers=address) for _ in range(30)]
    assert {answer.json()["error"]["message"] for answer in answers} == {"Invalid token: it has expired."}
    fresh = site.token({"sub": "colleague"})
    assert site.call("GET", "/v1/models", fresh, headers=address).status_code == 200


def test_browsers_of_configured_origins_may_call(site: Site) -> None:
    url = f"{site.gateway.origin}/v1/chat/completions"

    def preflight(origin: str) -> httpx.Response:
        request = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-lang",
        }
        return httpx.options(url, headers=request, trust_env=False)

    allowed = preflight(ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    assert "access-control-allow-origin" not in preflight("https://elsewhere.example.com").headers
    answer = site.chat(site.token(), headers={"origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "retry-after" in answer.headers["access-control-expose-headers"]
    refused = site.chat("sk-wrong", headers={"origin": ORIGIN})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN


def test_metrics(site: Site) -> None:
    before = site.metrics()
    site.chat(site.token())
    site.chat("sk-wrong")
    site.call("GET", "/nowhere/at/all", "x")
    site.call("GET", "/v1/models/a", site.gateway.api_key)
    after = site.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    chat = 'torpor_requests_total{code="%s",endpoint="/v1/chat/completions",status="%s"}'
    assert grown(chat % ("", "2xx")) == 1
    assert grown(chat % ("invalid_api_key", "4xx")) == 1
    assert grown('torpor_requests_total{code="not_found",endpoint="other",status="4xx"}') == 1
    assert grown('torpor_requests_total{code="model_not_found",endpoint="/v1/models/{id}",status="4xx"}') == 1
    assert grown('torpor_authentications_total{result="ok"}') == 2
    assert grown('torpor_authentications_total{result="unknown"}') == 1
    assert grown('torpor_tokens_total{kind="output",model="far"}') == 7
    assert grown('torpor_requests_by_tier_total{model="far",tier="hot"}') == 1
    assert grown(f'torpor_requests_by_project_total{{project="{site.project}",status="2xx"}}') == 1
    assert grown('torpor_request_duration_seconds_count{endpoint="/v1/chat/completions"}') == 2
    assert grown('torpor_request_duration_seconds_bucket{endpoint="/v1/chat/completions",le="+Inf"}') == 2
    assert after['torpor_engine_state{model="far",state="ready"}'] == 1
    assert after['torpor_engine_tier{model="far",tier="hot"}'] == 1
    assert after["torpor_ledger_writable"] == 1
    assert after["torpor_exchanges"] == 0
    assert not any(secret in " ".join(after) for secret in ("sk-", "key_", "jwt_"))


def test_metrics_are_not_on_the_public_port(site: Site) -> None:
    assert httpx.get(f"{site.gateway.origin}/metrics", trust_env=False).status_code == 404
    port = site.metrics_port
    assert httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).status_code == 404
    openmetrics = httpx.get(
        f"http://127.0.0.1:{port}/metrics",
        headers={"accept": "application/openmetrics-text; version=1.0.0"},
        trust_env=False,
    )
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")
