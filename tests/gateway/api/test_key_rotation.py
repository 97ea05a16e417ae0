"""Keys that are replaced while they are in use, over real HTTP."""

import time

import pytest
from openai import AsyncOpenAI

from tests.gateway.app_fixture import Stage


async def test_a_rotated_key_overlaps_with_the_new_one(client: AsyncOpenAI, stage: Stage) -> None:
    tenant = stage.tenant
    await client.admin.organization.projects.api_keys.update(
        tenant.key_id, project_id=tenant.project_id, scopes=["model.read"]
    )
    await stage.limit_key(max_requests_per_1_minute=3)
    path = f"/v1/torpor/keys/{tenant.key_id}/rotate"
    answer = await stage.admin.post(path, json={"overlap_seconds": 60})
    assert answer.headers["cache-control"] == "no-store"
    created = answer.json()
    assert created["scopes"] == ["model.read"]
    assert created["expires_at"] is None
    assert created["replaces"]["id"] == tenant.key_id
    ends_at = created["replaces"]["expires_at"]
    assert ends_at == pytest.approx(time.time() + 60, abs=5)
    assert await stage.status(created["value"]) == 200
    assert await stage.status(tenant.key) == 200
    limits = (await stage.admin.get("/v1/torpor/limits")).json()["data"]
    assert {item["subject_id"]: item["max_requests_per_1_minute"] for item in limits} == {
        tenant.key_id: 3, created["id"]: 3,
    }  # fmt: skip
    stage.services.tenants.credentials._clock = lambda: ends_at - 1
    assert await stage.status(tenant.key) == 200
    stage.services.tenants.credentials._clock = lambda: ends_at
    assert await stage.status(tenant.key) == 401
    assert await stage.status(created["value"]) == 200
    await stage.expire(tenant.key_id)
    expired = await stage.admin.post(path, json={})
    assert (expired.status_code, expired.json()["error"]["param"]) == (400, "key_id")
    at_once = (await stage.admin.post(f"/v1/torpor/keys/{created['id']}/rotate", json={})).json()
    assert await stage.status(created["value"]) == 401
    assert await stage.status(at_once["value"]) == 200


async def test_a_rotated_keys_limits_hold_for_the_new_one(stage: Stage) -> None:
    await stage.limit_key(max_requests_per_1_minute=1)
    path = f"/v1/torpor/keys/{stage.tenant.key_id}/rotate"
    created = (await stage.admin.post(path, json={"overlap_seconds": 60})).json()
    body = {"model": "away", "messages": [{"role": "user", "content": "?"}]}
    async with stage.client(created["value"]) as http:
        answers = [await http.post("/v1/chat/completions", json=body) for _ in range(2)]
    assert "x-ratelimit-limit-requests" in answers[0].headers
    assert answers[0].headers["x-ratelimit-limit-requests"] == "1"


async def test_an_admin_key_rotates_itself_and_keeps_its_lifetime(stage: Stage) -> None:
    body = {"name": "short", "expires_in_seconds": 100}
    short = (await stage.admin.post("/v1/organization/admin_api_keys", json=body)).json()
    async with stage.client(short["value"]) as http:
        path = f"/v1/torpor/keys/{short['id']}/rotate"
        created = (await http.post(path, json={"overlap_seconds": 3600})).json()
        assert created["value"].startswith("sk-admin-")
        assert created["expires_at"] - created["created_at"] == 100
        assert created["replaces"]["expires_at"] == short["expires_at"]
